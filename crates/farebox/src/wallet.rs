//! What a buyer pays with: a node named in `wallet.yaml` by the same keys as a seller's `lightning:`, a wallet behind Nostr
//! relays named there by `nwc:`, or a phoenixd by address.
//!
//! Whoever can read that file may be able to spend, and whoever can write it chooses where payments go, so one that others
//! than its owner can write is refused.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use farebox_lightning::{
    Pay,
    clock::SystemClock,
    config::{
        ConfigProblem, Connected, EmbeddedSettings, LightningConfig, LndSettings, NwcSettings, Password,
        PhoenixdSettings, Places,
    },
    nwc::Nwc,
    phoenixd::{ConnectError, Phoenixd, PhoenixdConfig, Secret},
};

use serde::Deserialize;
use serde_saphyr::Error;

use crate::buyer;

/// The variables that name the wallet where no flag does.
const WALLET: &str = "FAREBOX_WALLET";
const WALLET_URL: &str = "FAREBOX_WALLET_URL";

/// What to pay with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Wallet")]
pub(crate) struct WalletFlags {
    /// The file that says what to pay with: `lnd:`, `phoenixd:` or `embedded:`, with the keys that a seller's `lightning:` has,
    /// or `nwc:`
    /// [default: farebox/wallet.yaml in $XDG_CONFIG_HOME or ~/.config, if it is there]
    #[arg(long, value_name = "FILE", env = WALLET)]
    wallet: Option<PathBuf>,
    /// A phoenixd, or the wallet door of `farebox node`
    #[arg(long, value_name = "URL", env = WALLET_URL)]
    wallet_url: Option<String>,
    /// The file with its password; or put the password into FAREBOX_WALLET_PASSWORD
    #[arg(long, value_name = "FILE", env = "FAREBOX_WALLET_PASSWORD_FILE")]
    wallet_password_file: Option<PathBuf>,
}

/// A wallet that can be asked.
pub(crate) struct Wallet {
    pub(crate) pay: Arc<dyn Pay>,
    /// The key it is named by in the file.
    pub(crate) kind: &'static str,
    behind: Behind,
}

/// What is behind a wallet.
enum Behind {
    /// An address.
    Phoenixd,
    /// A node of the file.
    Node(Connected),
    /// Relays.
    Nwc(Arc<Nwc>),
}

impl Wallet {
    /// The wallet, where it is one behind relays: those can be asked more.
    pub(crate) fn nwc(&self) -> Option<Arc<Nwc>> {
        match &self.behind {
            Behind::Nwc(nwc) => Some(Arc::clone(nwc)),
            Behind::Phoenixd | Behind::Node(_) => None,
        }
    }

    /// Ends what runs in this process.
    pub(crate) async fn stop(self) {
        if let Behind::Node(node) = self.behind {
            node.stop().await;
        }
    }
}

/// What may stand in the file: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WalletFile {
    Embedded(EmbeddedSettings),
    Lnd(LndSettings),
    Phoenixd(PhoenixdSettings),
    Nwc(NwcSettings),
}

/// The same, told apart by what it takes to connect.
#[derive(Debug)]
enum Named {
    Node(LightningConfig),
    Nwc(NwcSettings),
}

impl From<WalletFile> for Named {
    fn from(file: WalletFile) -> Self {
        match file {
            WalletFile::Embedded(settings) => Self::Node(LightningConfig::Embedded(settings)),
            WalletFile::Lnd(settings) => Self::Node(LightningConfig::Lnd(settings)),
            WalletFile::Phoenixd(settings) => Self::Node(LightningConfig::Phoenixd(settings)),
            WalletFile::Nwc(settings) => Self::Nwc(settings),
        }
    }
}

impl Named {
    fn check(&self) -> Result<(), ConfigProblem> {
        match self {
            Self::Node(settings) => settings.check(),
            Self::Nwc(settings) => settings.check(),
        }
    }

    /// The file beside it that is enough to pay with, if it names one.
    fn key_file(&self) -> Option<&Path> {
        let key = match self {
            Self::Node(LightningConfig::Phoenixd(settings)) => Some(&settings.password),
            Self::Node(LightningConfig::Lnd(settings)) => settings.macaroon.as_ref(),
            Self::Node(_) => None,
            Self::Nwc(settings) => Some(&settings.uri),
        };
        match key {
            Some(Password::File(file)) => Some(file),
            _ => None,
        }
    }

    /// Whether whoever can read the file can spend.
    fn holds_a_spending_key(&self) -> bool {
        matches!(self, Self::Nwc(NwcSettings { uri: Password::Text(_), .. }))
    }
}

impl WalletFlags {
    /// Connects to the wallet; `None` where none is named and no file is there.
    pub(crate) async fn connect(&self) -> anyhow::Result<Option<Wallet>> {
        let by_url = match (&self.wallet, self.url()) {
            // A flag was meant for this call; a variable for all of them.
            (Some(_), Some(_)) if self.origin() == WALLET_URL => None,
            (Some(path), Some(url)) => {
                let by_variable = std::env::var_os(WALLET).is_some_and(|named| named == *path);
                anyhow::ensure!(
                    by_variable,
                    "--wallet and --wallet-url name two wallets; leave one of them out"
                );
                Some(url)
            }
            (_, url) => url,
        };
        if let Some(url) = by_url {
            let pay = self.phoenixd(url).await?;
            return Ok(Some(Wallet { pay, kind: "phoenixd", behind: Behind::Phoenixd }));
        }
        let usual = || buyer::config_file("wallet.yaml").filter(|path| !buyer::is_missing(path));
        let Some(path) = self.wallet.clone().or_else(usual) else { return Ok(None) };
        let named = read(&path)?;
        let state = buyer::data_dir().context("there is no home directory for the wallet's state")?;
        let config = path.parent().unwrap_or(Path::new("."));
        let places = Places { config, state: &state };
        let settings = match named {
            Named::Node(settings) => settings,
            Named::Nwc(settings) => {
                let nwc = settings.connect(places).await;
                let nwc = Arc::new(nwc.with_context(|| format!("`{}`", path.display()))?);
                let pay = Arc::clone(&nwc) as Arc<dyn Pay>;
                return Ok(Some(Wallet { pay, kind: "nwc", behind: Behind::Nwc(nwc) }));
            }
        };
        let kind = settings.kind();
        let node = settings.connect(places).await?;
        match node.pay().await {
            Ok(pay) => Ok(Some(Wallet { pay, kind, behind: Behind::Node(node) })),
            Err(error) => {
                node.stop().await;
                Err(error).with_context(|| format!("`{}`", path.display()))
            }
        }
    }

    async fn phoenixd(&self, url: &str) -> anyhow::Result<Arc<dyn Pay>> {
        let password = match &self.wallet_password_file {
            Some(path) => fs::read_to_string(path)
                .with_context(|| format!("cannot read the wallet's password in `{}`", path.display()))?,
            None => std::env::var("FAREBOX_WALLET_PASSWORD")
                .context("the wallet needs a password: --wallet-password-file or FAREBOX_WALLET_PASSWORD")?,
        };
        let config = PhoenixdConfig::new(url, Secret::new(password.trim()));
        match Phoenixd::connect(config, Arc::new(SystemClock)).await {
            Ok(wallet) => Ok(Arc::new(wallet)),
            // Someone who has set no flag would look for it there.
            Err(error @ ConnectError::Address { .. }) => {
                Err(anyhow::Error::from(error).context(format!("in {}", self.origin())))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The files that whoever can read them can pay with.
    pub(crate) fn secrets(&self) -> Vec<PathBuf> {
        let usual = || buyer::config_file("wallet.yaml").filter(|path| !buyer::is_missing(path));
        let wallet = self.wallet.clone().or_else(|| if self.url().is_some() { None } else { usual() });
        let key = wallet.as_deref().and_then(|path| Some(path.parent()?.join(read(path).ok()?.key_file()?)));
        [wallet, key, self.wallet_password_file.clone()].into_iter().flatten().collect()
    }

    /// Where the wallet is, if it is named so: an empty variable is as good as none, an empty flag is a mistake.
    fn url(&self) -> Option<&str> {
        self.wallet_url.as_deref().filter(|url| !url.is_empty() || self.origin() == "--wallet-url")
    }

    /// What named the address. Where flag and variable agree, either answer is right.
    fn origin(&self) -> &'static str {
        let variable = std::env::var(WALLET_URL).ok();
        if variable.is_some() && variable == self.wallet_url { WALLET_URL } else { "--wallet-url" }
    }
}

/// Reads the file.
fn read(path: &Path) -> anyhow::Result<Named> {
    let unreadable = || format!("the wallet in `{}` can't be read", path.display());
    // Asked before it is opened: opening a pipe would wait for its other end.
    anyhow::ensure!(
        fs::metadata(path).with_context(unreadable)?.is_file(),
        "the wallet in `{}` is not a file",
        path.display()
    );
    let mut file = fs::File::open(path).with_context(unreadable)?;
    #[cfg(unix)]
    let mode = {
        let mode = std::os::unix::fs::MetadataExt::mode(&file.metadata().with_context(unreadable)?) & 0o7777;
        anyhow::ensure!(
            mode & 0o022 == 0,
            "`{}` can be written by others (mode {mode:o}), who could have your payments go elsewhere; run `chmod go-w` on it",
            path.display()
        );
        if let Some(directory) = farebox_client::policy::open_to_all(path).with_context(unreadable)? {
            anyhow::bail!(
                "everybody can write to `{}` and so replace `{}`; run `chmod o-w` on the directory",
                directory.display(),
                path.display()
            );
        }
        mode
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(&mut file, 1 << 20), &mut text)
        .with_context(unreadable)?;
    let named = parse(&text).with_context(unreadable)?;
    #[cfg(unix)]
    anyhow::ensure!(
        mode & 0o077 == 0 || !named.holds_a_spending_key(),
        "`{}` holds a wallet's connection and can be read by others (mode {mode:o}), who could spend with it; run `chmod 600` on it",
        path.display()
    );
    Ok(named)
}

fn parse(text: &str) -> anyhow::Result<Named> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let file: WalletFile = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| anyhow::anyhow!(explain(error.without_snippet())))?;
    let named = Named::from(file);
    named.check()?;
    Ok(named)
}

/// What is wrong with the file. What stands in a secret's place may be the secret, and is not repeated: this goes
/// to the log, too.
fn explain(error: &Error) -> String {
    let plain = |word: &str| {
        word.len() <= 24 && word.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_'))
    };
    let place = || match error.location() {
        Some(location) if location.line() > 0 => {
            format!("line {}, column {}: ", location.line(), location.column())
        }
        _ => String::new(),
    };
    match error {
        Error::SerdeUnknownVariant { expected, .. } if expected.contains(&"file") => {
            format!("{}say where the secret is: `{{ file: PATH }}` or `{{ env: NAME }}`", place())
        }
        Error::SerdeUnknownVariant { variant: word, expected, .. }
        | Error::SerdeUnknownField { field: word, expected, .. }
            if !plain(word) =>
        {
            format!("{}what stands here is none of `{}`", place(), expected.join("`, `"))
        }
        Error::ExpectedMappingEndAfterEnumVariantValue { .. } => {
            format!("{}only one wallet may be named; remove the others", place())
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_the_wrong_place_is_not_repeated() {
        for (text, what_to_do) in [
            ("nwc: { uri: 'nostr+walletconnect://b889?secret=4242' }", "{ file: PATH }"),
            ("phoenixd: { password: hunter }", "{ file: PATH }"),
            ("lnd: { macaroon: 0201036c6e64024242 }", "{ file: PATH }"),
            ("'nostr+walletconnect://b889?secret=4242'", "none of `embedded`"),
            ("nwc: { 'nostr+walletconnect://b889?secret=4242': }", "none of `uri`"),
            ("nwc: 'nostr+walletconnect://b889?secret=4242'", "line 1"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(what_to_do), "{text}: {error}");
            assert!(!error.contains("4242") && !error.contains("hunter"), "{error}");
        }
        let error = parse("phoenixd: { password: { env: S } }\nlnd: {}").unwrap_err().to_string();
        assert!(error.contains("only one"), "{error}");
    }

    #[test]
    fn a_wallet_is_named_by_the_keys_of_a_sellers_node() {
        let lnd = parse(
            "lnd: { address: '127.0.0.1:10009', network: regtest, macaroon: { file: admin.macaroon } }",
        );
        assert!(matches!(lnd.unwrap(), Named::Node(LightningConfig::Lnd(_))));
        let phoenixd = parse("phoenixd: { password: { env: SECRET } }");
        assert!(matches!(phoenixd.unwrap(), Named::Node(LightningConfig::Phoenixd(_))));
        let nwc = parse("nwc: { uri: { file: nwc.uri }, network: regtest, fee-worst: 1%, pays-once: true }");
        let nwc = nwc.unwrap();
        assert!(matches!(nwc, Named::Nwc(_)));
        assert_eq!(nwc.key_file(), Some(Path::new("nwc.uri")));
    }

    #[test]
    fn what_is_no_single_wallet_is_refused() {
        for (text, why) in [
            ("backends: [{ phoenixd: { password: { env: S } } }]", "backends"),
            ("nwc: { relay: 'wss://x' }", "relay"),
            ("nwc: { uri: { env: S }, fee-worst: much }", "much"),
            ("lnd: { adress: x }", "adress"),
            ("lnd: { address: 'nowhere' }", "nowhere"),
            ("{}", ""),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_write_or_replace_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wallet.yaml");
        fs::write(&path, "phoenixd: { password: { env: S } }").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod go-w"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path).is_ok());
        let uri = "nostr+walletconnect://key?secret=4242";
        fs::write(&path, format!("nwc: {{ uri: {{ text: '{uri}' }} }}")).unwrap();
        assert!(read(&path).is_ok());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("chmod 600") && !error.contains("4242"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod o-w"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().ends_with("is not a file"));
    }
}
