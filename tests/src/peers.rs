//! Other people's programs, against which ours are judged: built from the Go modules in `tests/peers`, which pin them.
//!
//! Nothing of theirs is in the source tree: the programs lie beside what cargo builds, and are built again when a module
//! asks for other versions. Not for anything that `cargo test` runs: a peer needs Go, and its module from a Go module proxy.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

/// Where Go's own installer puts it, for machines where it isn't in `PATH`.
const GO_ELSEWHERE: &str = "/usr/local/go/bin/go";

/// The directory with the programs of the module `tests/peers/NAME`, built if they aren't there.
pub fn peers(name: &str) -> PathBuf {
    let module = sources().join(name);
    let built = beside_what_cargo_builds().join("peers").join(name);
    fs::create_dir_all(&built).unwrap();
    // Tests and their processes may ask at once.
    let lock = File::create(built.join("lock")).unwrap();
    lock.lock().unwrap();

    let read = |file: &str| fs::read_to_string(module.join(file)).unwrap();
    // Which parts of a program are compiled, where that is asked: one line of build tags.
    let tags = module.join("tags");
    let tags = if tags.exists() { read("tags") } else { String::new() };
    let wanted = read("go.mod") + &read("go.sum") + &tags + &own(&module);
    let stamp = built.join("built-from");
    if fs::read_to_string(&stamp).is_ok_and(|from| from == wanted) {
        return built;
    }
    let mut target = built.clone().into_os_string();
    target.push("/");
    let outcome = go()
        .current_dir(&module)
        .args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-tags", tags.trim(), "-o"])
        .arg(target)
        .arg("tool")
        .status()
        .unwrap_or_else(|error| {
            panic!("`go` is needed, as new as {} says: {error}", module.join("go.mod").display())
        });
    assert!(outcome.success(), "cannot build the programs of {}: {outcome}", module.display());
    fs::write(stamp, wanted).unwrap();
    built
}

/// The code of a module with a program of our own, which asks what is theirs as their own programs do.
fn own(module: &Path) -> String {
    let files = fs::read_dir(module).unwrap().map(|entry| entry.unwrap().path());
    let mut code: Vec<_> = files.filter(|file| file.extension().is_some_and(|kind| kind == "go")).collect();
    code.sort();
    code.into_iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// Where the peers are pinned.
pub(crate) fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

fn go() -> Command {
    let is_in_path =
        env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join("go").is_file()));
    Command::new(if is_in_path { "go" } else { GO_ELSEWHERE })
}

/// The directory around `deps`, in which this test's own program is.
pub(crate) fn beside_what_cargo_builds() -> PathBuf {
    let this = env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().to_owned()
}
