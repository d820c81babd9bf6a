#[test]
fn probe() {
    let Ok(list) = std::env::var("PROBE") else { return };
    for rx in list.split('\n') {
        let (kind, text) = rx.split_once(' ').unwrap();
        let text = eval(text);
        let c = match kind { "r" => sconce::request::Constraint::Regex(text), "j" => sconce::request::Constraint::JsonSchema(serde_json::from_str(&text).unwrap()), _ => sconce::request::Constraint::Grammar(text.replace("\\n", "\n")) };
        let t = std::time::Instant::now();
        let g = crate::compile(&c);
        let took = t.elapsed();
        match g { Err(e) => println!("{rx}: {took:?} {e}"), Ok(g) => println!("{rx}: {took:?} {:?}", crate::hostile::walk(&g)) }
    }
}
fn eval(text: &str) -> String {
    // REP(x,n)
    let mut out = String::new(); let mut rest = text;
    while let Some(i) = rest.find("REP(") {
        out.push_str(&rest[..i]); let j = rest[i..].find(')').unwrap() + i;
        let (x, n) = rest[i+4..j].split_once(',').unwrap();
        out.push_str(&x.repeat(n.parse().unwrap())); rest = &rest[j+1..];
    }
    out.push_str(rest); out
}
