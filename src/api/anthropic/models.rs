//! `GET /v1/models` and `GET /v1/models/{id}` in Anthropic's shape.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::error::shortened;
use crate::calendar::rfc3339;
use crate::error::{Error, Result};
use crate::pool::ModelCard;

const LIMIT_DEFAULT: usize = 20;
const LIMIT_MAX: usize = 1000;

/// Which part of the list is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(in crate::api) struct Page {
    /// Most models to list; 20 unless said otherwise.
    #[schemars(range(min = 1, max = LIMIT_MAX))]
    limit: Option<usize>,
    /// List what comes after this model.
    after_id: Option<String>,
    /// List what comes before this model. Not beside `after_id`.
    before_id: Option<String>,
}

impl Page {
    /// The name of a field that was sent, if one was.
    pub fn sent(&self) -> Option<&'static str> {
        let sent = [
            ("limit", self.limit.is_some()),
            ("after_id", self.after_id.is_some()),
            ("before_id", self.before_id.is_some()),
        ];
        sent.into_iter().find(|(_, sent)| *sent).map(|(name, _)| name)
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicModelList")]
pub(in crate::api) struct ModelList {
    data: Vec<ModelInfo>,
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicModel")]
pub(in crate::api) struct ModelInfo {
    #[schemars(extend("const" = "model"))]
    r#type: &'static str,
    id: String,
    display_name: String,
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    lifecycle: &'static str,
    max_input_tokens: u32,
    max_tokens: u32,
}

/// `id` is the name it is listed under: its own or an alias.
pub(in crate::api) fn one(id: &str, card: &ModelCard) -> ModelInfo {
    ModelInfo {
        r#type: "model",
        id: id.to_owned(),
        display_name: id.to_owned(),
        created_at: rfc3339(card.created_s),
        lifecycle: "active",
        max_input_tokens: card.max_model_len,
        max_tokens: card.max_model_len,
    }
}

pub(in crate::api) fn list(mut all: Vec<ModelInfo>, page: &Page) -> Result<ModelList> {
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
    if limit == 0 || limit > LIMIT_MAX {
        return Err(Error::invalid("limit", format!("limit is {limit}; it must be from 1 to {LIMIT_MAX}")));
    }
    let place = |param: &str, id: &str| {
        all.iter().position(|model| model.id == id).ok_or_else(|| {
            Error::invalid(param, format!("{param} is '{}', which is none of the models", shortened(id)))
        })
    };
    let range = match (&page.after_id, &page.before_id) {
        (Some(_), Some(_)) => {
            return Err(Error::invalid("before_id", "after_id and before_id exclude each other; send one of them"));
        }
        (Some(after), None) => place("after_id", after)? + 1..all.len(),
        (None, Some(before)) => 0..place("before_id", before)?,
        (None, None) => 0..all.len(),
    };
    let backwards = page.before_id.is_some();
    let has_more = range.len() > limit;
    let kept = match backwards {
        true => range.end - range.len().min(limit)..range.end,
        false => range.start..range.start + range.len().min(limit),
    };
    let data: Vec<_> = all.drain(kept).collect();
    let id = |model: Option<&ModelInfo>| model.map(|model| model.id.clone());
    Ok(ModelList { has_more, first_id: id(data.first()), last_id: id(data.last()), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_in_both_directions() {
        let card = |id: &str| ModelCard {
            id: id.to_owned(),
            aliases: Vec::new(),
            root: String::new(),
            parent: None,
            max_model_len: 8,
            created_s: 0,
            chat: true,
            task: Default::default(),
        };
        let ask = |limit: Option<usize>, after: Option<&str>, before: Option<&str>| {
            let all = ["a", "b", "c"].map(|id| one(id, &card(id))).into();
            let page = Page { limit, after_id: after.map(str::to_owned), before_id: before.map(str::to_owned) };
            list(all, &page).map(|list| {
                let ids: String = list.data.iter().map(|model| model.id.as_str()).collect();
                (ids, list.has_more, list.last_id)
            })
        };
        let last = |id: &str| Some(id.to_owned());
        assert_eq!(ask(None, None, None), Ok(("abc".into(), false, last("c"))));
        assert_eq!(ask(Some(2), None, None), Ok(("ab".into(), true, last("b"))));
        assert_eq!(ask(Some(2), Some("b"), None), Ok(("c".into(), false, last("c"))));
        assert_eq!(ask(Some(1), None, Some("c")), Ok(("b".into(), true, last("b"))));
        assert_eq!(ask(None, Some("c"), None), Ok((String::new(), false, None)));
        for (limit, after, before, param) in [
            (Some(0), None, None, "limit"),
            (None, Some("x"), None, "after_id"),
            (None, Some("a"), Some("b"), "before_id"),
        ] {
            assert_eq!(ask(limit, after, before).expect_err(param).param.as_deref(), Some(param));
        }
    }
}
