//! Packed weights that outlive a process, as the operator wants them, and what is said of them in the log.

use std::sync::Arc;

use sconce_models::{PackedCache, PackedNews};

use crate::config::packed::PackedPlace;
use crate::device::fit::human_bytes;

pub(super) fn cache(place: Option<&PackedPlace>, model: &str) -> Option<PackedCache> {
    let (PackedPlace { folder, bytes_max }, model) = (place?.clone(), model.to_owned());
    let told = move |news| tell(&model, &news);
    Some(PackedCache { folder, bytes_max, keeps_small: false, told: Arc::new(told) })
}

fn tell(model: &str, news: &PackedNews) {
    match news {
        PackedNews::Used { file, bytes } => {
            let file = file.display();
            tracing::info!(model, %file, "packed weights were mapped ({})", human_bytes(*bytes));
        }
        PackedNews::Kept { file, bytes } => {
            let file = file.display();
            let size = human_bytes(*bytes);
            tracing::info!(model, %file, "packed weights are kept ({size}): the next load maps them; --packed-cache off does without");
        }
        PackedNews::NotKept { file, why } => {
            tracing::warn!(model, file = %file.display(), "packed weights are not kept: {why}; --packed-cache and --packed-cache-size say where and how much");
        }
    }
}
