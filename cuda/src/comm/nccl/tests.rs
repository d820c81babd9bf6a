//! The calls against a library in NCCL's place, compiled here: devices are stand-ins that are never touched.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{Comms, Nccl};
use crate::comm::Collective;
use crate::device::Device;
use crate::element::ElementType;

/// Handles know their rank; a stream of 1 is one on which a peer never comes, and a length of 66 finds a broken link.
const LIBRARY: &str = r#"
#include <stddef.h>
#include <unistd.h>
struct comm { int rank, device, error; volatile int aborted; };
static struct comm all[8];
int ncclCommInitAll(struct comm **comms, int count, const int *devices) {
    if (count > 8 || devices[0] < 0) return 4;
    for (int rank = 0; rank < count; rank++) {
        all[rank] = (struct comm){.rank = rank, .device = devices[rank]};
        comms[rank] = &all[rank];
    }
    return 0;
}
int ncclCommAbort(struct comm *comm) { comm->aborted = 1; return 0; }
int ncclCommGetAsyncError(struct comm *comm, int *error) { *error = comm->error; return 0; }
const char *ncclGetErrorString(int code) { return code == 6 ? "remote error" : "invalid argument"; }
int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, struct comm *comm, void *stream) {
    if (type != 7 || op != 0 || from != to) return 4;
    while (stream == (void *)1 && !comm->aborted) usleep(100);
    if (comm->aborted) return 6;
    if (count == 66) comm->error = 6;
    ((float *)to)[0] = 1000.0f * comm->device + count;
    return 0;
}
int ncclAllGather(const void *from, void *to, size_t count, int type, struct comm *comm, void *stream) {
    if (type != 7 || (const float *)to + comm->rank * count != from) return 4;
    ((float *)to)[0] = -1.0f * count;
    return 0;
}
"#;

fn library(name: &str) -> &'static Nccl {
    let folder = std::env::temp_dir().join(format!("sconce-nccl-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let (source, library) = (folder.join("nccl.c"), folder.join("libnccl.so"));
    std::fs::write(&source, LIBRARY).expect("it is written");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("a C compiler").success());
    let nccl = Nccl::open(&["libnccl-that-is-nowhere.so", library.to_str().expect("UTF-8")]).expect("it opens");
    std::fs::remove_dir_all(&folder).expect("it is not needed any more");
    Box::leak(Box::new(nccl))
}

fn comms(name: &str) -> (Comms, Vec<Device>) {
    let devices = vec![Device::host(), Device::host()];
    let comms = Comms::by(library(name), &devices, &[3, 5]).expect("two ranks");
    (comms, devices)
}

#[test]
fn calls_say_what_they_mean() {
    let (comms, devices) = comms("calls");
    let x = devices[1].zeros(132, ElementType::F32).expect("memory");
    assert!(comms.enter(1).expect("all is well"));
    comms.issue(1, Collective::AllReduce, (x.all(), 132), std::ptr::null_mut()).expect("a sum");
    assert_eq!(x.to_vec::<f32>().expect("values")[0], 5132.0);
    comms.issue(1, Collective::AllGather, (x.all(), 66), std::ptr::null_mut()).expect("in its place");
    assert_eq!(x.to_vec::<f32>().expect("values")[0], -66.0);
    comms.issue(1, Collective::AllReduce, (x.range(0, 66), 66), std::ptr::null_mut()).expect("a sum");
    comms.leave(1);
    let error = comms.enter(1).expect_err("its link is broken").to_string();
    assert!(error.contains("remote error") && error.contains("NCCL_DEBUG"), "{error}");
    assert!(comms.enter(0).expect("it does not know yet"));
    comms.leave(0);
    let refused = Comms::by(library("refused"), &devices, &[-1, 0]).err().expect("no such device").to_string();
    assert!(refused.contains("invalid argument"), "{refused}");
}

#[test]
fn an_abort_ends_a_call_that_waits() {
    let (comms, devices) = comms("abort");
    let x = devices[0].zeros(4, ElementType::F32).expect("memory");
    let is_inside = AtomicBool::new(false);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            assert!(comms.enter(0).expect("all is well"));
            is_inside.store(true, Ordering::SeqCst);
            let issued = comms.issue(0, Collective::AllReduce, (x.all(), 4), std::ptr::without_provenance_mut(1));
            comms.leave(0);
            issued.expect_err("the other rank never comes").to_string()
        });
        while !is_inside.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let asked = Instant::now();
        comms.abort();
        assert!(asked.elapsed() < Duration::from_secs(1), "nobody waits for it");
        assert!(waiting.join().expect("no panic").contains("remote error"));
    });
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(!comms.enter(0).expect("no reason of its own") && !comms.enter(1).expect("nor here"));
    assert!(comms.issue(1, Collective::AllReduce, (x.all(), 4), std::ptr::null_mut()).is_err());
}

#[test]
fn a_missing_library_says_what_to_install() {
    let why = Nccl::open(&["libnccl-that-is-nowhere.so"]).err().expect("it is nowhere");
    let said = ["libnccl.so.2 was not found", "libnccl2", "LD_LIBRARY_PATH", "--tensor-parallel-size 1"];
    assert!(said.iter().all(|part| why.contains(part)), "{why}");
}
