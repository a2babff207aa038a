//! Reads `WWW-Authenticate` as it is found in the wild (RFC 9110 section 11.6.1, and what servers make of it).
//!
//! Tolerant, for the buyer's side only: folded lines, any order, no quotes or single ones, spaces for commas, unknown
//! schemes and parameters. What it can't make sense of it steps over. It takes linear time, and its answer is bounded.

/// Longer header values are not read at all.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Challenges beyond these in one value are dropped.
pub const CHALLENGES_MAX: usize = 32;
/// Parameters beyond these in one challenge are dropped.
pub const PARAMS_MAX: usize = 32;

/// One challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthChallenge {
    /// The scheme, as written.
    pub scheme: String,
    /// What follows the scheme when it isn't parameters.
    pub token68: Option<String>,
    /// The parameters in order, names as written, values without quotes and escapes.
    pub params: Vec<(String, String)>,
}

impl AuthChallenge {
    /// The first parameter of this name, in whatever case.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The challenges in one header value, in order.
pub fn parse_challenges(value: &str) -> Vec<AuthChallenge> {
    if value.len() > VALUE_BYTES_MAX {
        return Vec::new();
    }
    let mut scanner = Scanner { rest: value };
    let mut challenges: Vec<AuthChallenge> = Vec::new();
    while !scanner.rest.is_empty() {
        let word = scanner.word();
        if word.is_empty() {
            // A comma, a space, or something that has no business here.
            scanner.step();
            continue;
        }
        if let Some(value) = scanner.param_value() {
            // A parameter before any scheme belongs to nothing.
            if let Some(challenge) = challenges.last_mut().filter(|c| c.params.len() < PARAMS_MAX) {
                challenge.params.push((word.to_owned(), value));
            }
            continue;
        }
        if challenges.len() == CHALLENGES_MAX {
            break;
        }
        let token68 = scanner.token68();
        challenges.push(AuthChallenge { scheme: word.to_owned(), token68, params: Vec::new() });
    }
    challenges
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// Takes as long as `keep` says.
    fn take(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn step(&mut self) {
        let mut chars = self.rest.chars();
        chars.next();
        self.rest = chars.as_str();
    }

    /// A scheme or a parameter's name.
    fn word(&mut self) -> &'a str {
        self.take(|c| c.is_ascii_alphanumeric() || "!#$%&*+-.^_`|~".contains(c))
    }

    /// The value, if `=` comes next; otherwise nothing is consumed.
    fn param_value(&mut self) -> Option<String> {
        let value = self.rest.trim_start_matches(is_space).strip_prefix('=')?;
        self.rest = value.trim_start_matches(is_space);
        let quote = self.rest.chars().next().filter(|c| *c == '"' || *c == '\'');
        if let Some(quote) = quote {
            self.step();
            if let Some(value) = self.quoted(quote) {
                return Some(value);
            }
        }
        // No quotes, or an opening one that nothing closes: up to the next separator.
        Some(self.take(|c| !is_space(c) && c != ',' && c != ';').trim_end_matches(['"', '\'']).to_owned())
    }

    fn quoted(&mut self, quote: char) -> Option<String> {
        let mut value = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => value.push(chars.next()?),
                _ if c == quote => {
                    self.rest = chars.as_str();
                    return Some(value);
                }
                _ => value.push(c),
            }
        }
        None
    }

    /// What follows the scheme, if it is one word of base64 and not a parameter; otherwise nothing is consumed.
    fn token68(&mut self) -> Option<String> {
        let start = self.rest.trim_start_matches(is_space);
        let mut ahead = Scanner { rest: start };
        let body = ahead.take(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        let padding = ahead.take(|c| c == '=');
        let end = ahead.rest.trim_start_matches(is_space);
        if start.len() == self.rest.len() || body.is_empty() || !(end.is_empty() || end.starts_with(',')) {
            return None;
        }
        self.rest = end;
        Some(format!("{body}{padding}"))
    }
}

fn is_space(c: char) -> bool {
    c.is_ascii_whitespace()
}
