//! Places where a test can end the process as if the power had gone. Without the feature `failpoints` they are nothing.

/// Every place of this crate, in the order in which a purchase passes them. Those of the payment itself are in
/// `farebox_lightning::outgoing::FAILPOINTS`. A test walks through them all.
pub const FAILPOINTS: &[&str] = &[
    "client-after-reserve",
    "client-before-record",
    "client-after-record",
    "client-before-retry",
    "client-after-retry",
    "client-after-note",
];

/// Ends the process here, without unwinding or flushing anything, if a test has asked for it.
#[inline]
pub(crate) fn reach(name: &str) {
    debug_assert!(FAILPOINTS.contains(&name), "`{name}` is missing in the list");
    #[cfg(feature = "failpoints")]
    if std::env::var_os("FAREBOX_FAILPOINT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
}
