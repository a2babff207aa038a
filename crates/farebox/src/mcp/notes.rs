//! What a person should know about who could go round the rules. Said on standard error and in `farebox_budget`.
//!
//! Rules hold against a program that asks for too much. Whoever can write them, or use the wallet without farebox, needn't ask;
//! against that only another user account helps, and this only tells where there is none.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::{buyer::Files, wallet::WalletFlags};

/// What programs of the user that this process runs as could do.
pub(crate) fn of_this_user(files: &Files, wallet: &WalletFlags) -> Vec<String> {
    let uid = rustix::process::geteuid().as_raw();
    let mut notes = Vec::new();
    if let Some(what) = files.policy_path().ok().as_deref().and_then(writable) {
        notes.push(format!(
            "programs that run as this user (uid {uid}) can write `{}` and so change the policy",
            what.display()
        ));
    }
    for secret in wallet.secrets() {
        if access(&secret, Access::READ_OK).is_ok() {
            notes.push(format!(
                "programs that run as this user (uid {uid}) can read `{}` and so use the wallet without asking",
                secret.display()
            ));
        }
    }
    if std::env::var_os("FAREBOX_WALLET_PASSWORD").is_some() {
        notes.push(format!(
            "programs that run as this user (uid {uid}) can read FAREBOX_WALLET_PASSWORD out of this process"
        ));
    }
    if !notes.is_empty() {
        notes.push(
            "rules hold here against an agent that asks for too much, not against one that goes round farebox: run the agent \
             as another user, see `farebox mcp --help`"
                .to_owned(),
        );
    }
    notes
}

/// What the user at the other end of the socket could do.
pub(super) fn of_caller(uid: u32, files: &Files, wallet: &WalletFlags) -> Vec<String> {
    if uid == 0 {
        return vec!["an agent that runs as root has connected: no rule holds against it".to_owned()];
    }
    if uid == rustix::process::geteuid().as_raw() {
        return vec![format!(
            "an agent has connected that runs as the same user (uid {uid}): it can go round farebox"
        )];
    }
    let policy = files.policy_path().ok().map(|path| (path, "change the policy"));
    let secrets = wallet.secrets().into_iter().map(|path| (path, "use the wallet without asking"));
    let journal = files.journal().ok().map(|path| (path, "read and change what is bought and spent"));
    let theirs = policy.into_iter().chain(secrets).chain(journal).filter_map(|(path, what)| {
        let owned =
            [Some(path.as_path()), path.parent()].into_iter().flatten().find(|path| is_owner(uid, path));
        owned.map(|path| {
            format!("`{}` belongs to the agent that has connected (uid {uid}): it can {what}", path.display())
        })
    });
    theirs.collect()
}

/// The file, or the directory that it is or would be in, if this process can write it.
fn writable(path: &Path) -> Option<PathBuf> {
    let directory = path.ancestors().skip(1).find(|directory| directory.exists());
    [Some(path), directory]
        .into_iter()
        .flatten()
        .find(|path| access(*path, Access::WRITE_OK).is_ok())
        .map(Path::to_owned)
}

fn is_owner(uid: u32, path: &Path) -> bool {
    path.metadata().is_ok_and(|facts| std::os::unix::fs::MetadataExt::uid(&facts) == uid)
}
