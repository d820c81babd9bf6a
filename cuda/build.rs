//! Compiles `kernels/*.cu`: by nvcc into one fat binary a file (feature `driver`), by the host's C++ compiler into the
//! stand-in (feature `host`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::{env, fs};

/// A comma list for `SCONCE_CUDA_ARCHS`: `90a` is machine code for sm_90a, `+80` is PTX that newer drivers compile.
const ARCHS: &str = "80,89,90a,+80";

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-changed=shim");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut files: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the package has a folder of kernels")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    files.sort();
    if env::var_os("CARGO_FEATURE_DRIVER").is_some() {
        compile_for_gpus(&files, &out);
    }
    if env::var_os("CARGO_FEATURE_HOST").is_some() {
        compile_for_host(&files, &out);
    }
}

/// `$OUT_DIR/modules.rs`: name and bytes of each fat binary.
fn compile_for_gpus(files: &[PathBuf], out: &Path) {
    for name in ["SCONCE_CUDA_ARCHS", "SCONCE_CUDA_NONE", "CUDA_HOME", "NVCC_CCBIN"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // For type checks on machines without the compiler: such a program finds no kernel and says so.
    let none = env::var_os("SCONCE_CUDA_NONE").is_some();
    let nvcc = env::var("CUDA_HOME").map_or_else(|_| "nvcc".to_owned(), |home| format!("{home}/bin/nvcc"));
    let archs = env::var("SCONCE_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(2);
    let (mut running, mut table) = (Vec::new(), String::from("&[\n"));
    for file in files {
        let name = file.file_stem().expect("a file with an extension").to_string_lossy();
        let fatbin = out.join(format!("{name}.fatbin"));
        // Attention alone takes minutes: what has not changed is kept from the last time.
        let key = format!("{nvcc} {archs} {none} {:016x}", hash_of(file));
        let kept = out.join(format!("{name}.key"));
        if fs::read_to_string(&kept).is_ok_and(|kept| kept == key) && fatbin.exists() {
            // As it is.
        } else if none {
            fs::write(&fatbin, b"").expect("OUT_DIR can be written");
            fs::write(&kept, key).expect("OUT_DIR can be written");
        } else {
            let _ = fs::remove_file(&kept);
            running.push((nvcc_of(&nvcc, &archs, file, &fatbin), kept, key));
        }
        if running.len() >= jobs {
            finish(running.remove(0));
        }
        table += &format!("    ({name:?}, include_bytes!({:?})),\n", fatbin.display().to_string());
    }
    running.into_iter().for_each(finish);
    fs::write(out.join("modules.rs"), table + "]\n").expect("OUT_DIR can be written");
}

fn nvcc_of(nvcc: &str, archs: &str, file: &Path, fatbin: &Path) -> Child {
    let mut command = Command::new(nvcc);
    command.arg("-fatbin").args(archs.split(',').map(|arch| match arch.strip_prefix('+') {
        Some(ptx) => format!("-gencode=arch=compute_{ptx},code=compute_{ptx}"),
        None => format!("-gencode=arch=compute_{arch},code=sm_{arch}"),
    }));
    command.args(["-O3", "-std=c++17", "-lineinfo", "--compress-mode=size", "-Werror", "all-warnings"]);
    if let Ok(compiler) = env::var("NVCC_CCBIN") {
        command.args(["-ccbin", &compiler]);
    }
    let spawned = command.arg("-o").arg(fatbin).arg(file).spawn();
    spawned.unwrap_or_else(|error| {
        panic!("cannot run {nvcc}: {error}; set CUDA_HOME to a CUDA toolkit, scripts/cuda-toolkit.sh fetches one")
    })
}

fn finish((mut child, kept, key): (Child, PathBuf, String)) {
    let status = child.wait().expect("a child that was started");
    assert!(status.success(), "nvcc failed: no {}", kept.display());
    fs::write(&kept, key).expect("OUT_DIR can be written");
}

/// Of a kernel file and everything that it includes of this package.
fn hash_of(file: &Path) -> u64 {
    let (mut waiting, mut seen) = (vec![file.to_owned()], Vec::new());
    let mut hasher = DefaultHasher::new();
    while let Some(path) = waiting.pop() {
        if seen.contains(&path) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let included = text.lines().filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
        // The shim is the host's.
        waiting.extend(included.filter(|name| !name.contains('/')).map(|name| path.with_file_name(name)));
        text.hash(&mut hasher);
        seen.push(path);
    }
    hasher.finish()
}

/// All kernels as one C++ file, so that their table is complete and nothing of it is left out at linking.
fn compile_for_host(files: &[PathBuf], out: &Path) {
    let root = env::current_dir().expect("cargo runs build scripts in the package");
    let include = |file: &PathBuf| format!("#include {:?}\n", root.join(file).display().to_string());
    let all = out.join("kernels.cpp");
    let mut text = format!("#include {:?}\n", root.join("shim/shim.cpp").display().to_string());
    text.extend(files.iter().map(include));
    fs::write(&all, text).expect("OUT_DIR can be written");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").define("SCONCE_SHIM", None).file(&all).opt_level(2).warnings(true);
    // As the GPU's multiply-add: contraction is the compiler's to choose in both. Unused kernels are in the table.
    build.flag_if_supported("-Wno-unknown-pragmas").flag_if_supported("-Wno-unused-parameter");
    build.flag_if_supported("-fno-strict-aliasing").compile("sconce_kernels_on_host");
}
