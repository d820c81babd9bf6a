//! Prometheus' text format for figures that are read at scrape time instead of being registered.

use std::fmt::Write;
use std::time::SystemTime;

use crate::pool::EngineSnapshot;
use crate::pool::lifecycle::{ModelStatus, State};

/// A `/metrics` page in the making.
#[derive(Default)]
pub(super) struct Exposition {
    text: String,
}

/// One figure of an engine: name, help, type and how to read it.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: fn(&EngineSnapshot) -> f64,
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
        }
    }
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&EngineSnapshot) -> f64) -> Figure {
    Figure { name, help, kind: Kind::Gauge, read }
}

const fn counter(name: &'static str, help: &'static str, read: fn(&EngineSnapshot) -> f64) -> Figure {
    Figure { name, help, kind: Kind::Counter, read }
}

const FIGURES: &[Figure] = &[
    gauge("vllm:num_requests_running", "sequences in the running batch", |engine| engine.running as f64),
    gauge("vllm:num_requests_waiting", "sequences waiting for a place in the batch", |engine| engine.waiting as f64),
    gauge("vllm:kv_cache_usage_perc", "share of KV blocks in use, 1 is all", |engine| engine.kv_usage),
    // For endpoint pickers that do not know the new one.
    gauge("vllm:gpu_cache_usage_perc", "the same under its older name", |engine| engine.kv_usage),
    counter("vllm:prompt_tokens_total", "prompt tokens of admitted requests", |engine| engine.prompt_tokens as f64),
    counter("vllm:generation_tokens_total", "tokens generated", |engine| engine.generation_tokens as f64),
    counter("vllm:prompt_tokens_cached_total", "prompt tokens taken from the prefix cache", |engine| {
        engine.cached_prompt_tokens as f64
    }),
    counter("vllm:prompt_tokens_recomputed_total", "tokens computed again after preemption", |engine| {
        engine.recomputed_prompt_tokens as f64
    }),
    counter("vllm:prefix_cache_queries_total", "prompt tokens looked up in the prefix cache", |engine| {
        engine.prefix_queries as f64
    }),
    counter("vllm:prefix_cache_hits_total", "prompt tokens found in the prefix cache", |engine| {
        engine.prefix_hits as f64
    }),
    counter("vllm:num_preemptions_total", "sequences put back to waiting for lack of KV blocks", |engine| {
        engine.preemptions as f64
    }),
    counter("vllm:spec_decode_num_drafts_total", "times that tokens were drafted", |engine| engine.drafts as f64),
    counter("vllm:spec_decode_num_draft_tokens_total", "tokens drafted", |engine| engine.draft_tokens as f64),
    counter("vllm:spec_decode_num_accepted_tokens_total", "drafted tokens that the model confirmed", |engine| {
        engine.accepted_tokens as f64
    }),
    counter("sconce_embedded_texts_total", "texts that were made vectors or scores", |engine| {
        engine.embedded_texts as f64
    }),
    counter("sconce_padding_tokens_total", "tokens that filled steps up to a compiled size", |engine| {
        engine.padding_tokens as f64
    }),
    counter("sconce_engine_steps_total", "steps of the engine", |engine| engine.steps as f64),
];

impl Exposition {
    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, Kind::Gauge.as_str());
        self.sample(name, "", value);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, Kind::Counter.as_str());
        self.sample(name, "", value);
    }

    /// A figure of each member of the pool.
    pub(super) fn member_gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, help, Kind::Gauge.as_str());
        for (member, value) in values {
            self.sample(name, &format!("member=\"{}\"", escaped(member)), *value);
        }
    }

    /// A figure with several labels.
    pub(super) fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        values: impl Iterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        self.head(name, help, kind);
        for (labels, value) in values {
            let labels: Vec<_> = labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text))).collect();
            self.sample(name, &labels.join(","), value);
        }
    }

    pub(super) fn model_figure(&mut self, (name, help): (&str, &str), is_counter: bool, values: &[(&str, f64)]) {
        let kind = if is_counter { Kind::Counter } else { Kind::Gauge };
        self.head(name, help, kind.as_str());
        for (model, value) in values {
            self.sample(name, &format!("model_name=\"{}\"", escaped(model)), *value);
        }
    }

    pub(super) fn model_states(&mut self, name: &str, help: &str, models: &[ModelStatus], states: &[State]) {
        self.head(name, help, Kind::Gauge.as_str());
        for model in models {
            for state in states {
                let labels = format!("model_name=\"{}\",state=\"{}\"", escaped(&model.id), state.word());
                self.sample(name, &labels, f64::from(u8::from(model.state == *state)));
            }
        }
    }

    /// Everything that engines count themselves, model by model and there engine by engine.
    pub(super) fn engines(&mut self, models: &[(String, EngineSnapshot)]) {
        let engines: Vec<_> = models.iter().flat_map(|(model, all)| engines_of(model, all)).collect();
        let labels: Vec<_> = engines.iter().map(|(labels, _)| labels.clone()).collect();
        let engines = &engines;
        for figure in FIGURES {
            self.head(figure.name, figure.help, figure.kind.as_str());
            for ((_, engine), labels) in engines.iter().zip(&labels) {
                self.sample(figure.name, labels, (figure.read)(engine));
            }
        }
        self.head("vllm:cache_config_info", "size of the KV cache", Kind::Gauge.as_str());
        for ((_, engine), labels) in engines.iter().zip(&labels) {
            let labels = format!("{labels},block_size=\"{}\",num_gpu_blocks=\"{}\"", engine.block_size, engine.blocks);
            self.sample("vllm:cache_config_info", &labels, 1.0);
        }
        self.adapters(engines, &labels);
        self.step_tokens(engines, &labels);
        self.accepted_per_position(engines, &labels);
    }

    /// As vLLM has it: the names are labels, the value is the time. Endpoint pickers complain at every scrape where this is
    /// missing, so without adapters it is there, too.
    fn adapters(&mut self, engines: &[(String, &EngineSnapshot)], labels: &[String]) {
        const NAME: &str = "vllm:lora_requests_info";
        self.head(
            NAME,
            "LoRA adapters in use; its value is the time, and max_lora 0 means that there are none",
            "gauge",
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        if engines.iter().all(|(_, engine)| engine.adapters.is_none()) {
            let labels = "max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"";
            return self.sample(NAME, labels, now);
        }
        for ((_, engine), labels) in engines.iter().zip(labels) {
            let Some(adapters) = &engine.adapters else { continue };
            let (running, waiting) = (escaped(&adapters.running.join(",")), escaped(&adapters.waiting.join(",")));
            let most = adapters.max;
            let labels = format!(
                "{labels},max_lora=\"{most}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\""
            );
            self.sample(NAME, &labels, now);
        }
    }

    fn accepted_per_position(&mut self, engines: &[(String, &EngineSnapshot)], labels: &[String]) {
        const NAME: &str = "vllm:spec_decode_num_accepted_tokens_per_pos_total";
        self.head(NAME, "confirmed drafted tokens by their place in the draft", Kind::Counter.as_str());
        for ((_, engine), labels) in engines.iter().zip(labels) {
            for (position, accepted) in engine.accepted_per_position.iter().enumerate() {
                self.sample(NAME, &format!("{labels},position=\"{position}\""), *accepted as f64);
            }
        }
    }

    fn step_tokens(&mut self, engines: &[(String, &EngineSnapshot)], labels: &[String]) {
        const NAME: &str = "vllm:iteration_tokens_total";
        self.head(NAME, "tokens computed in one step", "histogram");
        for ((_, engine), labels) in engines.iter().zip(labels) {
            for (bound, steps) in &engine.step_tokens_buckets {
                if bound.is_finite() {
                    self.sample(&format!("{NAME}_bucket"), &format!("{labels},le=\"{bound}\""), *steps as f64);
                }
            }
            self.sample(&format!("{NAME}_bucket"), &format!("{labels},le=\"+Inf\""), engine.steps as f64);
            self.sample(&format!("{NAME}_sum"), labels, engine.step_tokens_sum);
            self.sample(&format!("{NAME}_count"), labels, engine.steps as f64);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _infallible = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _infallible = if labels.is_empty() {
            writeln!(self.text, "{name} {value}")
        } else {
            writeln!(self.text, "{name}{{{labels}}} {value}")
        };
    }
}

/// The engines of one model with their labels, numbered as vLLM numbers its data-parallel ones.
fn engines_of<'a>(model: &str, all: &'a EngineSnapshot) -> impl Iterator<Item = (String, &'a EngineSnapshot)> {
    let each = if all.replicas.is_empty() { std::slice::from_ref(all) } else { &all.replicas };
    let model = escaped(model);
    each.iter().enumerate().map(move |(index, engine)| (format!("model_name=\"{model}\",engine=\"{index}\""), engine))
}

/// A label value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    #[test]
    fn each_replica_is_an_engine() {
        let replica = |running| EngineSnapshot { running, ..EngineSnapshot::default() };
        let mut page = Exposition::default();
        page.engines(&[
            ("m".to_owned(), EngineSnapshot::together(vec![replica(2), replica(3)])),
            ("n".to_owned(), replica(1)),
        ]);
        let page = page.into_text();
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with("vllm:num_requests_running")).collect();
        assert_eq!(
            lines,
            [
                "vllm:num_requests_running{model_name=\"m\",engine=\"0\"} 2",
                "vllm:num_requests_running{model_name=\"m\",engine=\"1\"} 3",
                "vllm:num_requests_running{model_name=\"n\",engine=\"0\"} 1",
            ]
        );
    }

    #[test]
    fn a_step_histogram_ends_with_all_steps() {
        let engine = EngineSnapshot {
            steps: 5,
            step_tokens_buckets: vec![(1.0, 2), (8.0, 4), (f64::INFINITY, 5)],
            step_tokens_sum: 40.0,
            ..EngineSnapshot::default()
        };
        let mut page = Exposition::default();
        page.engines(&[("m".to_owned(), engine)]);
        let lines: Vec<_> =
            page.into_text().lines().filter(|line| line.starts_with("vllm:iteration")).map(str::to_owned).collect();
        assert_eq!(
            lines,
            [
                "vllm:iteration_tokens_total_bucket{model_name=\"m\",engine=\"0\",le=\"1\"} 2",
                "vllm:iteration_tokens_total_bucket{model_name=\"m\",engine=\"0\",le=\"8\"} 4",
                "vllm:iteration_tokens_total_bucket{model_name=\"m\",engine=\"0\",le=\"+Inf\"} 5",
                "vllm:iteration_tokens_total_sum{model_name=\"m\",engine=\"0\"} 40",
                "vllm:iteration_tokens_total_count{model_name=\"m\",engine=\"0\"} 5",
            ]
        );
    }
}
