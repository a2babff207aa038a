//! The phoenixd that runs on this machine already, found by its own configuration file, so that `farebox serve` needs no more
//! than an upstream and a price. The file is phoenixd's; it is only read.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use farebox_lightning::phoenixd::Secret;

/// phoenixd's port unless its file says otherwise.
const PORT: u16 = 9740;

/// Where phoenixd is and what opens it.
pub(super) struct Found {
    pub(super) file: PathBuf,
    pub(super) url: String,
    pub(super) password: Secret,
}

/// The phoenixd of this user, if there is one.
pub(super) fn find() -> Option<Found> {
    let home = env::var_os("HOME")?;
    let file = Path::new(&home).join(".phoenix").join("phoenix.conf");
    read(&fs::read_to_string(&file).ok()?).map(|(port, password)| Found {
        file,
        url: format!("http://127.0.0.1:{port}"),
        password,
    })
}

/// Port and password in the text of a `phoenix.conf`. The password that cannot spend is enough, and better.
fn read(text: &str) -> Option<(u16, Secret)> {
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key && !value.trim().is_empty()).then(|| value.trim())
        })
    };
    let password = value("http-password-limited-access").or_else(|| value("http-password"))?;
    let port = value("http-bind-port").map_or(Some(PORT), |port| port.parse().ok())?;
    Some((port, Secret::new(password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Option<(u16, &str)>) {
        let found = read(text);
        let found = found.as_ref().map(|(port, password)| (*port, password.expose()));
        assert_eq!(found, want);
    }

    #[test]
    fn the_password_that_cannot_spend_is_preferred() {
        check("http-password=full\nhttp-password-limited-access=limited\n", Some((9740, "limited")));
        check("chain=mainnet\n http-password = full \nhttp-bind-port=9999", Some((9999, "full")));
    }

    #[test]
    fn a_file_without_a_password_or_with_a_strange_port_is_no_phoenixd() {
        check("", None);
        check("# http-password=x\nhttp-password=\n", None);
        check("http-password=x\nhttp-bind-port=many\n", None);
    }
}
