//! Other people's libraries in Python and JavaScript, and scripts of ours that drive them: installed from what the
//! directories in `tests/peers` pin.
//!
//! As with the programs of [`peers`](crate::peers()), nothing of theirs is in the source tree: they lie beside what cargo
//! builds, and are installed again when other versions are pinned. Not for anything that `cargo test` runs: they need
//! Python and Node.js, and come from those languages' package registries.

use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use crate::peers::{beside_what_cargo_builds, sources};

/// What pins versions, for whichever language it is.
const PINS: [&str; 3] = ["requirements.txt", "package.json", "package-lock.json"];

/// A directory with the libraries that are pinned in `tests/peers/NAME`, and the scripts that lie there.
#[derive(Clone, Debug)]
pub struct Scripts(PathBuf);

impl Scripts {
    /// Installs the libraries, unless that has been done. Panics if Python or Node.js isn't there.
    pub fn install(name: &str) -> Self {
        let source = sources().join(name);
        let dir = beside_what_cargo_builds().join("peers").join(name);
        fs::create_dir_all(&dir).unwrap();
        // Tests and their processes may ask at once.
        let lock = File::create(dir.join("lock")).unwrap();
        lock.lock().unwrap();

        // Scripts lie beside their libraries, which is where Node.js looks for them.
        for entry in fs::read_dir(&source).unwrap() {
            let file = entry.unwrap().path();
            if file.is_file() {
                put(&fs::read(&file).unwrap(), &dir.join(file.file_name().unwrap()));
            }
        }
        let pins: Vec<_> = PINS.iter().filter(|pin| source.join(pin).exists()).collect();
        assert!(!pins.is_empty(), "{} pins nothing", source.display());
        let wanted: String = pins.iter().map(|pin| fs::read_to_string(source.join(pin)).unwrap()).collect();
        let stamp = dir.join("installed-from");
        if fs::read_to_string(&stamp).is_ok_and(|from| from == wanted) {
            return Self(dir);
        }
        if pins.contains(&&"requirements.txt") {
            run(Command::new("python3").args(["-m", "venv", "--clear", "python"]).current_dir(&dir));
            let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"];
            let python = dir.join("python/bin/python");
            run(Command::new(python).args(pip).args(["--requirement", "requirements.txt"]).current_dir(&dir));
        }
        if pins.contains(&&"package-lock.json") {
            let ci = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
            run(Command::new("npm").args(ci).current_dir(&dir));
        }
        fs::write(stamp, wanted).unwrap();
        Self(dir)
    }

    /// A command that runs one of the scripts: by Node.js or by Python, as its name says.
    pub fn command(&self, script: &str) -> Command {
        let interpreter = match Path::new(script).extension().and_then(|extension| extension.to_str()) {
            Some("mjs") => "node".into(),
            Some("py") => self.python_program("python"),
            _ => panic!("what runs `{script}`?"),
        };
        let mut command = Command::new(interpreter);
        command.arg(script).current_dir(&self.0);
        command
    }

    /// A program that came with the libraries in Python.
    pub fn python_program(&self, name: &str) -> PathBuf {
        self.0.join("python/bin").join(name)
    }
}

/// Writes a file only if it is another: a script may be running.
fn put(content: &[u8], to: &Path) {
    if fs::read(to).is_ok_and(|there| there == content) {
        return;
    }
    fs::write(to, content).unwrap();
}

fn run(command: &mut Command) {
    let outcome = command.status().unwrap_or_else(|error| panic!("{command:?} is needed: {error}"));
    assert!(outcome.success(), "{command:?}: {outcome}");
}
