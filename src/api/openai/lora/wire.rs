//! What the endpoints of adapters read.

use crate::api::json::{Wire, fields, policies, refused};

pub(in crate::api) type LoadBody = Wire<LoadFields>;
pub(in crate::api) type UnloadBody = Wire<UnloadFields>;

fields! {
    #[schemars(rename = "LoadLoraAdapterRequest")]
    LoadFields {
        /// The name that requests will use as their model.
        #[schemars(required)]
        lora_name: String,
        /// The adapter's folder, in the folder of `--lora-dir`.
        #[schemars(required)]
        lora_path: String,
        /// The model it is added to; needed where the server runs several.
        base_model_name: String,
        /// Replace the adapter of that name.
        load_inplace: bool,
    }
    policy = LOAD_POLICY
}

fields! {
    #[schemars(rename = "UnloadLoraAdapterRequest")]
    UnloadFields {
        #[schemars(required)]
        lora_name: String,
        /// The model it was added to; needed where the server runs several.
        base_model_name: String,
    }
    policy = UNLOAD_POLICY
}

policies! {
    LOAD_POLICY {
        "is_3d_lora_weight" => refused(&["false"], "leave it out"),
    }
}

policies! {
    UNLOAD_POLICY {
        "lora_int_id" => refused(&[], "name the adapter with lora_name"),
    }
}
