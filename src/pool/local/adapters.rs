//! Adapters beside a local model: each is a model of its own by name, and the base model's engine runs it.
//!
//! A request holds its adapter until its stream ends, so one that is unloaded meanwhile goes on to serve what it has begun.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Mutex;

use super::{Loaded, LocalMember};
use crate::engine::{AdapterId, LoadedAdapter};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::member::{
    AdapterFigures, EngineSnapshot, EventStream, Member, MemberState, Model, ModelCard, NewAdapter, TokenizeInput,
    Tokenized, TokenizerInfo,
};
use crate::request::Request;

/// Reads an adapter from a folder and hands it to the engine. Takes a moment: not for the event loop.
pub type AdapterLoader = Arc<dyn Fn(&Path) -> Result<LoadedAdapter> + Send + Sync>;

/// What a model may be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterLimits {
    pub max_loras: u32,
    /// Adapters below this folder may be loaded while the server runs; nowhere else, and none without it.
    pub folder: Option<PathBuf>,
}

/// An adapter by its name.
pub(super) struct Entry {
    card: ModelCard,
    folder: PathBuf,
    /// As the engine of a loaded model has it: models come and go, and an adapter follows when it is asked for.
    held: Mutex<Option<Held>>,
    /// Requests that use it, and those of them that have begun to answer.
    live: AtomicU32,
    begun: AtomicU32,
}

struct Held {
    model: Weak<Loaded>,
    adapter: Arc<LoadedAdapter>,
}

/// A request's hold on its adapter.
pub(super) struct AdapterUse {
    entry: Arc<Entry>,
    loaded: Option<Arc<LoadedAdapter>>,
    has_begun: bool,
}

impl AdapterUse {
    fn new(entry: Arc<Entry>) -> Self {
        entry.live.fetch_add(1, Ordering::Relaxed);
        Self { entry, loaded: None, has_begun: false }
    }

    /// With the adapter in this model's engine.
    pub async fn on(mut self, model: &Arc<Loaded>) -> Result<Self> {
        let mut held = self.entry.held.lock().await;
        let known = held.as_ref().filter(|held| std::ptr::eq(held.model.as_ptr(), Arc::as_ptr(model)));
        let adapter = match known {
            Some(held) => Arc::clone(&held.adapter),
            None => {
                let (loader, folder) = (model.adapters.clone().ok_or_else(takes_none)?, self.entry.folder.clone());
                let loading = tokio::task::spawn_blocking(move || loader(&folder)).await;
                let loaded =
                    loading.map_err(|panic| Error::internal(format!("loading the adapter failed: {panic}")))?;
                let adapter = Arc::new(loaded.map_err(|error| named(&self.entry.card.id, error))?);
                *held = Some(Held { model: Arc::downgrade(model), adapter: Arc::clone(&adapter) });
                adapter
            }
        };
        drop(held);
        self.loaded = Some(adapter);
        Ok(self)
    }

    /// The first tokens are there.
    pub fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.entry.begun.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn id(&self) -> Option<AdapterId> {
        self.loaded.as_ref().map(|loaded| loaded.id())
    }
}

impl Drop for AdapterUse {
    fn drop(&mut self) {
        self.entry.live.fetch_sub(1, Ordering::Relaxed);
        if self.has_begun {
            self.entry.begun.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The adapters of one member.
#[derive(Default)]
pub(super) struct Adapters {
    // Written when one is loaded or unloaded.
    entries: RwLock<Vec<Arc<Entry>>>,
    limits: AdapterLimits,
}

impl Adapters {
    pub fn new(limits: AdapterLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, card: ModelCard, folder: PathBuf, held: Option<Held>) {
        let (live, begun) = (AtomicU32::new(0), AtomicU32::new(0));
        let entry = Arc::new(Entry { card, folder, held: Mutex::new(held), live, begun });
        self.entries.write().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn forget(&self, name: &str) -> bool {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let before = entries.len();
        entries.retain(|entry| entry.card.id != name);
        entries.len() < before
    }

    pub fn figures(&self) -> Option<AdapterFigures> {
        let entries = self.entries();
        if entries.is_empty() && self.limits.folder.is_none() {
            return None;
        }
        let names = |is_meant: fn(u32, u32) -> bool| {
            let meant = entries
                .iter()
                .filter(|entry| is_meant(entry.live.load(Ordering::Relaxed), entry.begun.load(Ordering::Relaxed)));
            meant.map(|entry| entry.card.id.clone()).collect()
        };
        Some(AdapterFigures {
            max: self.limits.max_loras,
            running: names(|_, begun| begun > 0),
            waiting: names(|live, begun| live > begun),
        })
    }
}

impl LocalMember {
    /// Names an adapter that comes with the model. It is read when the model is, and handed to the engine when it is asked
    /// for.
    pub fn announce_adapter(&self, card: ModelCard) {
        let folder = PathBuf::from(&card.root);
        self.adapters.add(card, folder, None);
    }

    pub(super) fn adapter_members(self: Arc<Self>) -> Vec<Arc<dyn Member>> {
        let member = |entry| {
            let base = Arc::clone(&self);
            Arc::new(AdapterMember { base, entry, card: OnceLock::new() }) as Arc<dyn Member>
        };
        self.adapters.entries().into_iter().map(member).collect()
    }

    pub(super) fn add_adapter(&self, new: &NewAdapter) -> Result<()> {
        let NewAdapter { name, path, replaces, created_s } = new;
        let base = self.card();
        let folder = self.adapters.limits.folder.as_deref().ok_or_else(switched_off)?;
        let super::Held::Generating(model) = self.present()? else { return Err(takes_none()) };
        let loader = model.adapters.clone().ok_or_else(takes_none)?;
        let known = self.adapters.entries();
        let is_known = known.iter().any(|entry| entry.card.id == *name);
        if is_known && !replaces {
            let message = format!("the adapter '{name}' is already loaded; set load_inplace to true to replace it");
            return Err(Error::invalid("lora_name", message));
        }
        let most = self.adapters.limits.max_loras;
        if !is_known && known.len() >= most as usize {
            let message = format!("{most} adapters are loaded, as many as --max-loras allows; unload one first");
            return Err(Error::invalid("lora_name", message));
        }
        let place = inside(folder, path)?;
        let adapter = Arc::new(loader(&place)?);
        let card = ModelCard {
            id: name.clone(),
            aliases: Vec::new(),
            root: path.clone(),
            parent: Some(base.id.clone()),
            created_s: *created_s,
            ..base.clone()
        };
        self.adapters.forget(name);
        self.adapters.add(card, place, Some(Held { model: Arc::downgrade(&model), adapter }));
        Ok(())
    }

    pub(super) fn remove_adapter(&self, name: &str) -> Result<bool> {
        if self.adapters.limits.folder.is_none() {
            return Err(switched_off());
        }
        Ok(self.adapters.forget(name))
    }
}

fn takes_none() -> Error {
    Error::invalid("base_model_name", "this model takes no adapters; name one that makes text and has weights")
}

fn switched_off() -> Error {
    let message = "loading adapters while the server runs is off; start it with --lora-dir FOLDER";
    Error::new(ErrorKind::Forbidden, message).with_code("runtime_lora_off")
}

fn named(name: &str, error: Error) -> Error {
    Error { message: format!("the adapter '{name}': {}", error.message), ..error }
}

/// The adapter's folder, which must be below the operator's, links resolved.
fn inside(folder: &Path, path: &str) -> Result<PathBuf> {
    let not_there = || {
        let message = format!("there is no adapter '{path}' in the folder of --lora-dir");
        Error::new(ErrorKind::NotFound, message).with_param("lora_path").with_code("lora_not_found")
    };
    let folder = folder.canonicalize().map_err(|_| not_there())?;
    // An absolute path replaces the folder, and must then lead below it by itself.
    let place = folder.join(path).canonicalize().map_err(|_| not_there())?;
    // What lies elsewhere is told from what does not exist to nobody.
    if place.starts_with(&folder) && place.is_dir() { Ok(place) } else { Err(not_there()) }
}

/// An adapter as a model of its own.
struct AdapterMember {
    base: Arc<LocalMember>,
    entry: Arc<Entry>,
    /// With what is known of the base model once it was loaded.
    card: OnceLock<ModelCard>,
}

impl Model for AdapterMember {
    fn card(&self) -> &ModelCard {
        let Some(base) = self.base.card.get() else { return &self.entry.card };
        self.card.get_or_init(|| ModelCard {
            max_model_len: base.max_model_len,
            chat: base.chat,
            task: base.task,
            ..self.entry.card.clone()
        })
    }

    fn state(&self) -> MemberState {
        self.base.state()
    }

    fn tokenize(&self, input: TokenizeInput) -> Result<Tokenized> {
        self.base.tokenize(input)
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        self.base.detokenize(tokens)
    }

    fn tokenizer_info(&self) -> Result<TokenizerInfo> {
        self.base.tokenizer_info()
    }

    fn awake(&self) -> BoxFuture<'_, Result<()>> {
        self.base.awake()
    }
}

impl Member for AdapterMember {
    fn start(&self, request: Request) -> BoxFuture<'_, Result<EventStream>> {
        self.base.start_with(request, Some(AdapterUse::new(Arc::clone(&self.entry)))).boxed()
    }

    fn unsupported(&self, request: &Request) -> Option<Error> {
        self.base.unsupported(request)
    }

    fn wake(&self) {
        self.base.wake();
    }

    fn wake_ms(&self) -> u64 {
        self.base.wake_ms()
    }

    /// The base model's figures are those of its engine.
    fn snapshot(&self) -> EngineSnapshot {
        EngineSnapshot::default()
    }
}
