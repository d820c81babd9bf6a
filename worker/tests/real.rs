//! Real processes behind a real guard: nothing outlives its server, whatever it does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sconce_worker::{Environment, Limits, Phase, Status, Supervisor, User, WorkerSpec};

const ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
/// Nothing here takes so long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn spec(folder: &Path, command: &[&str]) -> WorkerSpec {
    WorkerSpec {
        name: "w".into(),
        model: "m".into(),
        command: command.iter().map(|word| word.replace("ENGINE", ENGINE)).collect(),
        port: None,
        cores: None,
        cache: folder.join("cache"),
        folder: folder.join("work"),
        environment: Environment(vec![("PATH".into(), "/usr/bin:/bin".into())]),
        user: None,
        guard: PathBuf::from(ENGINE),
    }
}

fn quick() -> Limits {
    Limits {
        ready_ms: 20_000,
        hang_ms: 15_000,
        grace_ms: 300,
        crashes_max: 3,
        backoff_first_ms: 20,
        backoff_max_ms: 50,
        retry_ms: 60_000,
        ..Limits::default()
    }
}

async fn until(worker: &Supervisor, is_it: impl Fn(&Status) -> bool) -> Status {
    let mut status = worker.watch();
    let found = tokio::time::timeout(PATIENCE, status.wait_for(|status| is_it(status))).await;
    match found {
        Ok(found) => found.expect("it runs").clone(),
        Err(_) => panic!("it is still {:?}", worker.status()),
    }
}

fn is_there(pid: u32) -> bool {
    // A zombie that its parent has not waited for is still listed.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Processes of this test, by a word on their command line.
fn with_word(word: &str) -> Vec<u32> {
    let listed = std::fs::read_dir("/proc").expect("a /proc").flatten();
    let pids = listed.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|part| part == word)
    };
    pids.filter(|pid| has(pid) && is_there(*pid)).collect()
}

fn gone(what: &str, mut is_gone: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_gone() {
        assert!(started.elapsed() < PATIENCE, "{what} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Zombies whose parent is this process.
fn zombies() -> usize {
    let own = format!(") Z {} ", std::process::id());
    let listed = std::fs::read_dir("/proc").expect("a /proc").flatten();
    let stats = listed.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.contains(&own)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_compiles_serves_and_ends_with_all_its_family() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "ENGINE {port} hang & exec ENGINE {port} compile 0.5".replace("ENGINE", ENGINE);
    let worker = Supervisor::new(spec(folder.path(), &["/bin/sh", "-c", &script]), quick());
    worker.start();
    let status = until(&worker, |status| status.phase == Phase::Ready).await;
    assert_eq!(status.served.expect("it says so").max_model_len, Some(2048));
    assert!(status.start_took_s.is_some_and(|took_s| took_s >= 0.5), "{:?}", status.start_took_s);
    let port = status.port.expect("a port").to_string();
    assert_eq!(with_word(&port).len(), 2, "the shell's child and the engine");
    worker.stop().await;
    gone("the worker", || with_word(&port).is_empty());
    assert_eq!(worker.status().phase, Phase::Stopped);
    gone("a zombie", || zombies() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_in_a_session_of_its_own_does_not_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let note = folder.path().join("child");
    let script = format!("ENGINE {{port}} family | tee {}", note.display());
    let worker = Supervisor::new(spec(folder.path(), &["/bin/sh", "-c", &script]), quick());
    worker.start();
    until(&worker, |status| status.phase == Phase::Ready).await;
    let text = std::fs::read_to_string(&note).expect("it was written");
    let child: u32 = text.trim().strip_prefix("child ").expect("a child").parse().expect("a pid");
    assert!(is_there(child));
    worker.stop().await;
    gone("the child", || !is_there(child));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ignores_the_polite_signal_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let script = "trap '' TERM; exec ENGINE {port} serve 0".replace("ENGINE", ENGINE);
    let worker = Supervisor::new(spec(folder.path(), &["/bin/sh", "-c", &script]), quick());
    worker.start();
    let port = until(&worker, |status| status.phase == Phase::Ready).await.port.expect("a port").to_string();
    let started = Instant::now();
    worker.stop().await;
    assert!(started.elapsed() >= Duration::from_millis(300), "it had its grace");
    gone("the worker", || with_word(&port).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_are_counted_and_told_with_their_cause() {
    for (way, words) in
        [("crash", "exited with code 3: RuntimeError: no Neuron cores"), ("leave", "exited with code 0")]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let worker = Supervisor::new(spec(folder.path(), &["ENGINE", "{port}", way]), quick());
        worker.start();
        let status = until(&worker, |status| status.phase == Phase::Failed).await;
        assert_eq!((status.crashes, status.restarts), (3, 2), "{way}");
        assert!(status.last.as_deref().is_some_and(|last| last.contains(words)), "{way}: {:?}", status.last);
        worker.stop().await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let worker = Supervisor::new(spec(folder.path(), &["no-such-engine", "{port}"]), quick());
    worker.start();
    let status = until(&worker, |status| status.phase == Phase::Failed).await;
    let last = status.last.expect("a cause");
    assert!(last.contains("exited with code 127") && last.contains("cannot start no-such-engine"), "{last}");
    worker.stop().await;
    gone("a zombie", || zombies() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hangs_and_garbage_are_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { hang_ms: 400, ..quick() };
    let worker = Supervisor::new(spec(folder.path(), &["ENGINE", "{port}", "hang"]), limits);
    worker.start();
    let status = until(&worker, |status| status.last.is_some()).await;
    assert!(status.last.as_deref().is_some_and(|last| last.contains("hung: ")), "{:?}", status.last);
    worker.stop().await;
    let limits = Limits { ready_ms: 1500, ..quick() };
    let worker = Supervisor::new(spec(folder.path(), &["ENGINE", "{port}", "garbage"]), limits);
    worker.start();
    let status = until(&worker, |status| status.phase == Phase::Warming && status.note.is_some()).await;
    assert!(status.note.as_deref().is_some_and(|note| note.contains("this is no HTTP")), "{:?}", status.note);
    until(&worker, |status| status.last.as_deref().is_some_and(|last| last.contains("not ready after 1 s"))).await;
    worker.stop().await;
    gone("a zombie", || zombies() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_log_holds_nobody_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = Supervisor::new(spec(folder.path(), &["ENGINE", "{port}", "flood"]), quick());
    worker.start();
    until(&worker, |status| status.phase == Phase::Ready).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gets_only_what_it_was_given() {
    let folder = tempfile::tempdir().expect("a folder");
    let note = folder.path().join("environment");
    let script = format!("ENGINE {{port}} environment | tee {}", note.display());
    let mut spec = spec(folder.path(), &["/bin/sh", "-c", &script]);
    spec.cores = Some(sconce_worker::Cores::parse("2-3").expect("good"));
    let worker = Supervisor::new(spec, quick());
    worker.start();
    until(&worker, |status| status.phase == Phase::Ready).await;
    worker.stop().await;
    let text = std::fs::read_to_string(&note).expect("it was written");
    let cache = folder.path().join("cache/neuron");
    for line in [
        "NEURON_RT_VISIBLE_CORES=2-3".to_owned(),
        "NEURON_PROCESS_TAG=w".to_owned(),
        format!("NEURON_COMPILE_CACHE_URL={}", cache.display()),
        format!("in {}", folder.path().join("work").display()),
    ] {
        assert!(text.lines().any(|written| written == line), "{line} is not in: {text}");
    }
    assert!(!text.contains("CARGO"), "the server's own environment: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_guard_takes_its_worker_along_and_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let worker = Supervisor::new(spec(folder.path(), &["ENGINE", "{port}", "serve", "0"]), quick());
    worker.start();
    let first = until(&worker, |status| status.phase == Phase::Ready).await;
    let port = first.port.expect("a port").to_string();
    let guards: Vec<u32> = with_word(&port).into_iter().filter(|pid| with_word("--").contains(pid)).collect();
    assert_eq!(guards.len(), 1, "{guards:?}");
    let status = std::process::Command::new("kill").args(["-9", &guards[0].to_string()]).status().expect("kill runs");
    assert!(status.success());
    let second = until(&worker, |status| status.phase == Phase::Ready && status.generation > first.generation).await;
    assert!(second.last.as_deref().is_some_and(|last| last.contains("its guard ended before it")), "{:?}", second.last);
    let port = first.port.filter(|port| Some(*port) != second.port).map(|port| port.to_string());
    if let Some(port) = port {
        gone("the first worker", || with_word(&port).is_empty());
    }
    worker.stop().await;
    gone("a zombie", || zombies() == 0);
}

/// What the kernel says of a process, by the first word of a line of its status.
fn status_of(pid: u32, word: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = text.lines().find(|line| line.starts_with(word)).expect("the line is there");
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_user_has_only_what_that_user_has() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let user = match User::named("nobody") {
        Ok(user) if User::can_change() => user,
        Ok(_) => return println!("skipped: only root may become another user"),
        Err(why) => return println!("skipped: {why}"),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    // The build's folder may be closed to others.
    let engine = folder.path().join("engine");
    std::fs::copy(ENGINE, &engine).expect("copied");
    [folder.path(), engine.as_path()].into_iter().for_each(open);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "of root").expect("written");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("it is ours");

    let script = format!(
        "cat {} > cat.out 2>&1; kill -9 $PPID > kill.out 2>&1; exec {} {{port}} serve 0",
        secret.display(),
        engine.display()
    );
    let mut spec = spec(folder.path(), &["/bin/sh", "-c", &script]);
    spec.user = Some(user.clone());
    spec.guard = engine.clone();
    let worker = Supervisor::new(spec, quick());
    worker.start();
    let status = until(&worker, |status| status.phase == Phase::Ready).await;
    assert_eq!(status.crashes, 0, "{status:?}");
    let port = status.port.expect("a port").to_string();
    let engines = with_word(&port);
    assert_eq!(engines.len(), 1, "{engines:?}");
    let ids = vec![user.ids.user.to_string(); 4];
    assert_eq!(status_of(engines[0], "Uid:"), ids, "real, effective, saved and of the file system");
    assert_eq!(status_of(engines[0], "Gid:"), vec![user.ids.group.to_string(); 4]);
    let groups: Vec<String> = user.ids.groups.iter().map(u32::to_string).collect();
    assert_eq!(status_of(engines[0], "Groups:"), groups, "none of root's");
    for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(status_of(engines[0], set), ["0000000000000000"], "{set}");
    }
    let guard = status_of(engines[0], "PPid:")[0].parse().expect("a pid");
    assert_eq!(status_of(guard, "Uid:")[0], "0", "the guard stays who it was");
    let folder_path = folder.path();
    for (folder, mine) in [("cache", true), ("work", true), ("engine", false)] {
        let owner = std::fs::metadata(folder_path.join(folder)).expect("it is there").uid();
        assert_eq!(owner == user.ids.user, mine, "{folder}");
    }
    let said = |name: &str| std::fs::read_to_string(folder.path().join("work").join(name)).expect("it was tried");
    assert!(said("cat.out").contains("Permission denied"), "{}", said("cat.out"));
    assert!(!said("kill.out").is_empty(), "it may not end its guard");
    worker.stop().await;
    gone("the worker", || with_word(&port).is_empty());
    gone("a zombie", || zombies() == 0);
}
