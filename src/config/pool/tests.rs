use sconce_route::{Rule, Stay};

use super::*;
use crate::config::file::FileConfig;

const MEMBERS: &str = r#"
[[member]]
name = "home"
kind = "local"
model = "tiny"
hourly_usd = 0.5

[[member]]
name = "cloud"
kind = "openai"
model = "gpt-5-mini"
api_key = { env = "CLOUD_KEY" }
region = "EU-central-1"
price = { input = 0.25, output = 2.0 }

[[member]]
name = "other"
kind = "openai-compatible"
model = "m"
base_url = "http://localhost:9"
"#;

fn read(text: &str) -> Result<PoolConfig, String> {
    let file: FileConfig = toml::from_str(text).map_err(|why| why.message().to_owned())?;
    checked(&file.pool(), text, &["tiny".to_owned()]).map_err(|error| error.message)
}

#[test]
fn a_pool_is_read_and_checked() {
    let route = r#"
[[route]]
name = "smart"
aliases = ["gpt-4o"]
members = [{ name = "home", priority = 1 }, { name = "cloud", priority = 2, canary = 0.5 }, { name = "tiny", priority = 3 }]
stay = ["eu-central-1"]
deadline_s = 30
spill_wait_ms = 2000
hedge_after_ms = 500
cost_max_usd = 0.05
shadow = { member = "other", share = 0.25, answers = "both.jsonl" }
budget = { day_soft_usd = 1, month_hard_usd = 10.5 }
"#;
    let config = read(&format!("{MEMBERS}{route}")).expect("good");
    let MemberKind::Remote(cloud) = &config.members[1].kind else { panic!("a hosted member") };
    assert_eq!(cloud.region.as_deref(), Some("eu-central-1"));
    assert_eq!(cloud.secrets, Secrets::ApiKey(SecretSource::Env("CLOUD_KEY".into())));
    let route = &config.routes[0];
    assert!(route.answers_to("smart") && route.answers_to("gpt-4o"));
    assert_eq!(route.stay, Stay::Regions(vec!["eu-central-1".into()]));
    assert_eq!((route.policy.rule.clone(), route.policy.spill_wait_ms), (Rule::Priority, Some(2000)));
    assert_eq!((route.members[1].priority, route.members[1].canary), (2, Some(0.5)));
    assert_eq!(
        route.shadow,
        Some(Shadow { member: "other".into(), share_permille: 250, answers: Some("both.jsonl".into()) })
    );
    assert_eq!(
        (route.budget.day.soft, route.budget.month.hard),
        (Some(Nanos(1_000_000_000)), Some(Nanos(10_500_000_000)))
    );
    assert_eq!(route.cost_max, Some(Nanos(50_000_000)));
}

#[test]
fn faults_name_their_line_and_what_is_meant() {
    let member = |lines: &str| format!("[[member]]\nname = \"a\"\nmodel = \"m\"\n{lines}\n");
    let route = |lines: &str| format!("{MEMBERS}[[route]]\nname = \"r\"\n{lines}\n");
    let two = "members = [\"home\", \"cloud\"]";
    for (text, words) in [
        (member("kind = \"opnai\""), &["line 1", "'a'", "did you mean 'openai'"][..]),
        (member("kind = \"openai\""), &["api_key is missing"]),
        (member("kind = \"openai\"\napi_key = { env = \"A\" }\nhourly_usd = 1"), &["hourly_usd"]),
        (member("kind = \"openai-compatible\""), &["base_url is missing"]),
        (member("kind = \"openai-compatible\"\nbase_url = \"ftp://x\""), &["https://"]),
        (member("kind = \"bedrock\"\napi_key = { env = \"A\" }"), &["region is missing"]),
        (member("kind = \"bedrock\"\nregion = \"r\"\naccess_key_id = { env = \"A\" }"), &["go together"]),
        (member("kind = \"bedrock\"\nregion = \"r\"\naws_role = \"x\""), &["instance, container or web_identity"]),
        (
            member("kind = \"bedrock\"\nregion = \"r\"\naws_role = \"instance\"\napi_key = { env = \"A\" }"),
            &["aws_role", "leave one out"],
        ),
        (member("kind = \"anthropic\"\naws_role = \"instance\""), &["aws_role belongs to kind bedrock"]),
        (member("kind = \"anthropic\"\napi_key = { env = \"A\" }\nidle_timeout_s = 0"), &["idle_timeout_s"]),
        (member("kind = \"local\"\nbase_url = \"http://x\""), &["a local member has no base_url"]),
        (route("members = [\"hom\"]"), &["line 21", "[[route]] 'r'", "did you mean 'home'"]),
        (route("members = []"), &["members is empty"]),
        (route(two), &["'home' has no priority", "order of members means nothing"]),
        (route(&format!("{two}\npolicy = \"weightd\"")), &["did you mean 'weighted'"]),
        (route("members = [\"home\", \"home\"]\npolicy = \"weighted\""), &["named twice"]),
        (route(&format!("{two}\npolicy = \"weighted\"\nspeculative = true")), &["speculative", "cascade"]),
        (route("members = [{ name = \"home\", tier = 1 }]\npolicy = \"cheapest\""), &["tier means nothing"]),
        (
            route("members = [{ name = \"home\", tier = 1 }, { name = \"cloud\", tier = 1 }]\npolicy = \"cascade\""),
            &["two tiers"],
        ),
        (route("members = [\"home\"]\nstay = []"), &["stay is an empty list"]),
        (route("members = [\"home\"]\nattempts_max = 0"), &["attempts_max"]),
        (route("members = [\"home\"]\nbudget = { day_soft_usd = 2, day_hard_usd = 1 }"), &["day_soft_usd"]),
        (route("members = [\"home\"]\nshadow = { member = \"home\", share = 2 }"), &["shadow.share"]),
        (
            format!("{}{}", route("members = [\"home\"]"), "[[route]]\nname = \"r\"\nmembers = [\"home\"]\n"),
            &["another [[route]]"],
        ),
        (format!("{MEMBERS}{MEMBERS}"), &["another [[member]]"]),
        (format!("{MEMBERS}[[route]]\nname = \"tiny\"\nmembers = [\"cloud\"]\n"), &["a served model is called 'tiny'"]),
        (format!("{MEMBERS}[ledger]\ndecisions_share = 0.5\n"), &["decisions_share"]),
    ] {
        let fault = read(&text).expect_err(words[0]);
        for word in words {
            assert!(fault.contains(word), "{word} is not in: {fault}");
        }
    }
}

const WORKER: &str = "[[member]]\nname = \"trn\"\nkind = \"worker\"\nmodel = \"org/m\"\ncache = \"/var/cache/w\"\n";

fn workers(config: &PoolConfig) -> Vec<&WorkerConfig> {
    config
        .members
        .iter()
        .filter_map(|member| match &member.kind {
            MemberKind::Worker(worker) => Some(&**worker),
            _ => None,
        })
        .collect()
}

#[test]
fn replicas_share_cores_cost_and_weight() {
    let text = format!(
        "{MEMBERS}{WORKER}engine = \"vllm-neuron\"\nargs = [\"--max-num-seqs\", \"4\"]\ndevice = \"neuron:0-3\"\nreplicas = 2\n\
         hourly_usd = 2\nready_timeout_s = 7200\nrestart = {{ crashes_max = 2, window_s = 60 }}\nenv = {{ A = \"secret\" }}\n\
         [[route]]\nname = \"r\"\npolicy = \"weighted\"\nmembers = [{{ name = \"trn\", weight = 3, canary = 0.5 }}, \"cloud\"]\n"
    );
    let config = read(&text).expect("good");
    assert_eq!(config.meant_by("trn"), ["trn-1", "trn-2"]);
    assert_eq!(config.meant_by("cloud"), ["cloud"]);
    let [one, two] = workers(&config)[..] else { panic!("two") };
    let cores = |worker: &WorkerConfig| worker.spec.cores.as_ref().map(ToString::to_string);
    assert_eq!((cores(one), cores(two)), (Some("0-1".into()), Some("2-3".into())));
    assert_eq!((one.hourly, one.limits.ready_ms, one.limits.crashes_max), (Some(Nanos(1_000_000_000)), 7_200_000, 2));
    assert!(one.spec.command.ends_with(&["--max-num-seqs".to_owned(), "4".to_owned()]), "{:?}", one.spec.command);
    assert_eq!(one.spec.cache, two.spec.cache, "what one compiled serves the other");
    assert_ne!(one.spec.folder, two.spec.folder);
    assert!(one.spec.environment.0.contains(&("A".into(), "secret".into())) && !format!("{one:?}").contains("secret"));
    let parts: Vec<_> =
        config.routes[0].members.iter().map(|part| (part.name.as_str(), part.weight, part.canary)).collect();
    assert_eq!(parts, [("trn-1", 3, Some(0.25)), ("trn-2", 3, Some(0.25)), ("cloud", 2, None)]);
}

#[test]
fn faults_of_workers_are_named() {
    let engine = "engine = \"vllm\"\n";
    let neuron = |device: &str| format!("command = [\"e\", \"{{port}}\"]\ndevice = \"neuron:{device}\"\n");
    let second = |lines: &str| {
        format!("{}[[member]]\nname = \"b\"\nkind = \"worker\"\nmodel = \"m\"\ncache = \"/c\"\n{lines}", neuron("0-1"))
    };
    for (lines, words) in [
        (String::new(), &["line 1", "'trn'", "command = ", "llama-server"][..]),
        (format!("{engine}command = [\"e\", \"{{port}}\"]\n"), &["exclude each other"]),
        ("engine = \"vlm\"\n".into(), &["did you mean 'vllm'"]),
        ("engine = \"optimum-neuron\"\n".into(), &["needs device", "all cores"]),
        ("command = [\"e\"]\n".into(), &["no {port}"]),
        ("command = [\"e\", \"{prot}\"]\n".into(), &["{prot}", "{port}"]),
        (format!("{engine}device = \"cuda:0\"\n"), &["neuron:CORES"]),
        (format!("{engine}device = \"neuron:0-2\"\nreplicas = 2\n"), &["shared evenly", "replicas"]),
        (format!("{engine}replicas = 0\n"), &["replicas is 0"]),
        (format!("{engine}replicas = 2\nport = 8001\n"), &["leave port out"]),
        (format!("{engine}base_url = \"http://x\"\n"), &["kind worker takes no base_url"]),
        (format!("{engine}api_key = {{ env = \"A\" }}\n"), &["kind worker takes no api_key"]),
        (format!("{engine}hourly_usd = 1\nprice = {{ input = 1, output = 1 }}\n"), &["exclude each other"]),
        (format!("{engine}user = \"root\"\n"), &["does not run as root"]),
        (format!("{engine}user = \"nobody-has-this-name\"\n"), &["/etc/passwd"]),
        (format!("{engine}restart = {{ crashes_max = 0 }}\n"), &["crashes_max"]),
        (format!("{engine}restart = {{ backoff_first_s = 100 }}\n"), &["backoff_first_s"]),
        (format!("{engine}hang_timeout_s = 0\n"), &["hang_timeout_s"]),
        (format!("{engine}pass_env = [\"SCONCE_TEST_THAT_NOBODY_SETS\"]\n"), &["SCONCE_TEST_THAT_NOBODY_SETS"]),
        (format!("{engine}env = {{ \"A=B\" = \"c\" }}\n"), &["A=B"]),
        (second(&neuron("1-2")), &["line 8", "core 1 belongs to 'trn' and to 'b'"]),
        (
            format!(
                "{engine}replicas = 2\n[[route]]\nname = \"r\"\nmembers = [\"trn\", \"trn-1\"]\npolicy = \"weighted\"\n"
            ),
            &["named twice"],
        ),
        (
            format!(
                "{engine}replicas = 2\n[[route]]\nname = \"r\"\nmembers = [\"trn\"]\nshadow = {{ member = \"trn\", share = 1.0 }}\n"
            ),
            &["trn-1, trn-2"],
        ),
    ] {
        let fault = read(&format!("{WORKER}{lines}")).expect_err(words[0]);
        for word in words {
            assert!(fault.contains(word), "{word} is not in: {fault}");
        }
    }
    let hosted = MEMBERS.replace("kind = \"openai\"\n", "kind = \"openai\"\nreplicas = 2\n");
    assert!(read(&hosted).expect_err("hosted").contains("kind openai takes no replicas"));
}

#[test]
fn there_is_a_ledger_where_money_is_spent() {
    assert_eq!(read("").expect("nothing").ledger.file, StorePlace::Off);
    assert_ne!(read(MEMBERS).expect("members").ledger.file, StorePlace::Off);
    assert_eq!(read(&format!("{MEMBERS}[ledger]\nfile = \"off\"\n")).expect("off").ledger.file, StorePlace::Off);
}
