//! `sconce bench cost`: measured rates and an hourly price become a price per million tokens, beside hosted prices.

use std::path::PathBuf;

use clap::Args;
use sconce_route::price::{PerToken, PriceTable, Pricing, TokenPrice};
use sconce_vocabulary::error::{Error, Result};
use serde_json::{Value, json};

use super::serve::write_all;
use super::{Pace, Said, prepare, write};
use crate::args::{LoadArgs, OutputArgs, ServerArgs, positive};
use crate::metrics::Run;
use crate::report::table::{align, short};

/// What a million tokens cost on this machine, at several loads.
///
/// The machine is paid by the hour whether it is busy or not: its price per token falls with the load that it carries.
/// The table has the price of a million output tokens when input is counted as free, and that of a million tokens of
/// either kind; --hosted prices the same requests at a provider.
#[derive(Args, Debug, Clone)]
pub struct CostArgs {
    /// Address of the server, e.g. http://127.0.0.1:8080
    #[arg(long, visible_alias = "base-url", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// What the machine costs an hour, in USD
    #[arg(long, value_name = "USD", value_parser = positive)]
    pub price_per_hour: f64,
    /// What the same requests cost elsewhere: a model of the price table as PROVIDER/MODEL, or a price of your own in USD
    /// per million input and output tokens; may be given several times
    #[arg(long, value_name = "PROVIDER/MODEL or NAME=INPUT/OUTPUT")]
    pub hosted: Vec<String>,
    /// A price table whose entries go before the built-in ones, as `prices` of the configuration
    #[arg(long, value_name = "FILE")]
    pub prices: Option<PathBuf>,
    /// Write the price at the last of these loads as lines for sconce.toml
    #[arg(long, value_name = "FILE")]
    pub output_toml: Option<PathBuf>,
    /// Numbers of clients
    #[arg(long, visible_alias = "max-concurrency", value_name = "LIST", value_delimiter = ',', default_value = "1,4,16", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: Vec<u32>,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A price to hold against, and where it is from.
#[derive(Debug, Clone, PartialEq)]
struct Hosted {
    name: String,
    price: TokenPrice,
    note: String,
}

impl Hosted {
    fn parse(text: &str, table: &PriceTable) -> Result<Self> {
        if let Some((name, prices)) = text.rsplit_once('=') {
            let dollars = |text: &str| PerToken::from_dollars_a_million(text.trim().parse().ok()?);
            let price = prices.split_once('/').and_then(|(input, output)| {
                Some(TokenPrice { input: dollars(input)?, output: dollars(output)?, ..TokenPrice::default() })
            });
            let price = price.filter(|_| !name.is_empty()).ok_or_else(|| {
                let why = format!("--hosted: '{text}' is no price; write NAME=INPUT/OUTPUT in USD per million tokens");
                Error::invalid("--hosted", why)
            })?;
            return Ok(Self { name: name.to_owned(), price, note: format!("{name}: as given") });
        }
        let known = || {
            let names: Vec<String> =
                table.entries.iter().map(|entry| format!("{}/{}", entry.provider, entry.model)).collect();
            names.join(", ")
        };
        let found = text.split_once('/').and_then(|(provider, model)| match table.pricing(provider, model) {
            Pricing::Tokens(price) => Some((price, table.find(provider, model))),
            Pricing::Unknown | Pricing::Machine(_) => None,
        });
        let Some((price, entry)) = found else {
            let why =
                format!("--hosted: the price table has no '{text}'; it has {}, or write NAME=INPUT/OUTPUT", known());
            return Err(Error::invalid("--hosted", why));
        };
        let read = entry.map_or(table.as_of.clone(), |entry| format!("{} at {}", entry.as_of, entry.source));
        let (input, output) = (price.input.dollars_a_million(), price.output.dollars_a_million());
        let note = format!("{text}: {input} USD per M input, {output} per M output, read {read}");
        Ok(Self { name: text.to_owned(), price, note })
    }

    /// USD for the requests of a result, each of the average lengths.
    fn requests_usd(&self, point: &Run, requests: f64) -> f64 {
        let number = |key: &str| point.number(key).unwrap_or(0.0);
        let completed = number("completed").max(1.0);
        let (input, output) = (number("total_input_tokens"), number("total_output_tokens"));
        let is_long = self.price.long.filter(|long| input / completed > f64::from(long.over_tokens));
        let (in_price, out_price) =
            is_long.map_or((self.price.input, self.price.output), |long| (long.input, long.output));
        let total = input * in_price.dollars_a_million() + output * out_price.dollars_a_million();
        total / 1e6 / completed * requests
    }
}

fn price_table(args: &CostArgs) -> Result<PriceTable> {
    let Some(path) = &args.prices else { return Ok(PriceTable::builtin()) };
    let wrong = |why: String| Error::invalid("--prices", format!("--prices: {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| wrong(why.to_string()))?;
    Ok(PriceTable::builtin().overlaid(PriceTable::parse(&text).map_err(wrong)?))
}

pub fn run(args: &CostArgs) -> Result<Said> {
    let table = price_table(args)?;
    // Before an hour of measuring, not after it.
    let hosted = args.hosted.iter().map(|text| Hosted::parse(text, &table)).collect::<Result<Vec<_>>>()?;
    let most = args.concurrency.iter().max().copied().unwrap_or(1) as usize;
    let prepared = prepare(&args.url, &args.server, &args.load, &args.output, most)?;
    prepared.warm_up()?;
    let mut points = Vec::new();
    for count in &args.concurrency {
        let pace = Pace::clients(*count as usize);
        let outcome = prepared.run(pace, points.len() as u64, &format!("{count} clients"))?;
        let mut point = prepared.result(pace, &[outcome]);
        if point.number("completed") == Some(0.0) {
            return Err(Error::invalid("--url", format!("--url: no request was answered with {count} clients")));
        }
        for (key, value) in prices(&point, args.price_per_hour) {
            point.0.insert(key.to_owned(), json!(value));
        }
        let elsewhere: serde_json::Map<String, Value> =
            hosted.iter().map(|one| (one.name.clone(), json!(one.requests_usd(&point, 1000.0)))).collect();
        point.0.insert("hosted_usd_per_1000_requests".to_owned(), elsewhere.into());
        points.push(point);
    }
    let list: Vec<Value> = points.iter().map(|point| Value::Object(point.0.clone())).collect();
    let notes: Vec<&str> = hosted.iter().map(|one| one.note.as_str()).collect();
    let json = json!({"kind": "cost", "price_per_hour_usd": args.price_per_hour, "hosted": notes, "points": list});
    write_all(&args.output, &points, &json)?;
    if let Some(path) = &args.output_toml {
        let last = points.last().ok_or_else(|| Error::internal("no load was measured"))?;
        write(path, &member(last, &args.url, args.price_per_hour))?;
    }
    Ok(Said::well(render(args.price_per_hour, &hosted, &points)))
}

/// USD per million output tokens, and per million of both kinds.
fn prices(point: &Run, price_per_hour: f64) -> [(&'static str, f64); 2] {
    let per_million = |key: &str| {
        let rate = point.number(key).unwrap_or(0.0);
        price_per_hour / 3600.0 / rate.max(1e-12) * 1e6
    };
    [
        ("usd_per_million_output_tokens", per_million("output_throughput")),
        ("usd_per_million_tokens", per_million("total_token_throughput")),
    ]
}

/// What a router needs to know of this machine: `hourly_usd` for a model that it runs itself, whose tokens it goes on
/// measuring, or a price for one that runs elsewhere.
fn member(point: &Run, url: &str, price_per_hour: f64) -> String {
    let text = |key: &str| point.text(key).unwrap_or_default();
    let number = |key: &str| point.number(key).unwrap_or(0.0);
    // Prices have six decimals at most, and nothing that was measured is free.
    let each = (number("usd_per_million_tokens") * 1e6).round().max(1.0) / 1e6;
    format!(
        "# Measured by sconce bench cost on {}, {}: {:.1} tokens/s in and {:.1} tokens/s out\n\
         # at {} requests/s, on a machine of {price_per_hour} USD an hour that is busy all the time.\n\
         \n\
         # If this server runs the model, the router measures the tokens of the hour itself, idle time included:\n\
         # [[member]]\n\
         # name = \"here\"\n\
         # kind = \"local\"\n\
         # model = {}\n\
         # hourly_usd = {price_per_hour}\n\
         \n\
         [[member]]\n\
         name = \"measured\"\n\
         kind = \"openai-compatible\"\n\
         base_url = {}\n\
         model = {}\n\
         price = {{ input = {each}, output = {each} }}   # USD a million tokens of either kind\n",
        text("date"),
        point.load(),
        number("input_throughput"),
        number("output_throughput"),
        short(number("request_throughput")),
        json!(text("model_id")),
        json!(url),
        json!(text("model_id")),
    )
}

fn render(price_per_hour: f64, hosted: &[Hosted], points: &[Run]) -> String {
    let mut head: Vec<String> =
        ["load", "input tok/s", "output tok/s", "USD per M output", "USD per M in and out", "USD per 1,000 requests"]
            .map(str::to_owned)
            .into();
    head.extend(hosted.iter().map(|one| format!("the same at {}", one.name)));
    let mut rows = vec![head];
    for point in points {
        let number = |key: &str| point.number(key).unwrap_or(0.0);
        let per_request = price_per_hour / 3600.0 / number("request_throughput").max(1e-12);
        let mut row = vec![point.load()];
        row.extend(
            [
                number("input_throughput"),
                number("output_throughput"),
                number("usd_per_million_output_tokens"),
                number("usd_per_million_tokens"),
                per_request * 1000.0,
            ]
            .map(short),
        );
        row.extend(hosted.iter().map(|one| short(one.requests_usd(point, 1000.0))));
        rows.push(row);
    }
    let mut text = align(&rows);
    text.push_str(&format!("\nat {price_per_hour} USD an hour; the rates hold while the load does\n"));
    for one in hosted {
        text.push_str(&format!("{}\n", one.note));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(value: Value) -> Run {
        Run(value.as_object().expect("an object").clone())
    }

    #[test]
    fn prices_follow_from_rates() {
        let point = run(json!({"output_throughput": 1000.0, "total_token_throughput": 4000.0}));
        let [(_, output), (_, both)] = prices(&point, 3.6);
        assert!((output - 1.0).abs() < 1e-9 && (both - 0.25).abs() < 1e-9, "{output} {both}");
    }

    #[test]
    fn hosted_prices_are_given_or_of_the_table() {
        let table = PriceTable::parse(
            "as_of = \"2026-11-01\"\n[[price]]\nprovider = \"p\"\nmodel = \"m\"\nas_of = \"2026-11-02\"\nsource = \"a list\"\n\
             usd_per_million = { input = 1.0, output = 2.0, long = { over_tokens = 500, input = 10.0, output = 20.0 } }",
        )
        .expect("a table");
        let point =
            |input: u32| run(json!({"completed": 10, "total_input_tokens": 10 * input, "total_output_tokens": 1000}));
        for (text, short, long) in [("p/m", 0.3, 8.0), ("x=0.5/1.5", 0.2, 0.45)] {
            let hosted = Hosted::parse(text, &table).expect("a price");
            let usd = |input| hosted.requests_usd(&point(input), 1000.0);
            assert!(
                (usd(100) - short).abs() < 1e-9 && (usd(600) - long).abs() < 1e-9,
                "{text}: {} {}",
                usd(100),
                usd(600)
            );
        }
        assert!(Hosted::parse("p/m", &table).expect("a price").note.contains("read 2026-11-02 at a list"));
        for wrong in ["x", "x=1", "=1/2", "x=a/b", "x=-1/2", "p/other", "m"] {
            assert!(Hosted::parse(wrong, &table).is_err(), "{wrong}");
        }
        assert!(Hosted::parse("openai/gpt-4o", &PriceTable::builtin()).is_ok());
    }

    #[test]
    fn lines_for_the_configuration_have_the_measured_price() {
        let point = run(json!({
            "model_id": "m \"x\"", "max_concurrency": 4, "date": "2026-11-22T00:00:00Z", "input_throughput": 1.0,
            "output_throughput": 1.0, "request_throughput": 1.0, "usd_per_million_tokens": 0.123_456_789,
        }));
        let text = member(&point, "http://h:1", 0.6);
        assert!(text.contains("price = { input = 0.123457, output = 0.123457 }"), "{text}");
        assert!(text.contains("model = \"m \\\"x\\\"\"") && text.contains("hourly_usd = 0.6"), "{text}");
        assert!(text.contains("4 clients"), "{text}");
    }
}
