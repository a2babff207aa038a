//! Places where a test can kill the process: before and after each write of the journal and each call to the wallet.
//!
//! Compiled in only with the cargo feature `failpoints`; without it [`reach`] is empty and no environment is read. With
//! it, `FAREBOX_FAILPOINT=name` aborts the process there, as a power cut would: no destructor runs.

macro_rules! points {
    ($($point:ident = $name:literal),* $(,)?) => {
        /// A place where the process can be killed.
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Point { $($point),* }

        impl Point {
            #[cfg(feature = "failpoints")]
            const fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }
        }

        /// The name of every place, in no particular order.
        pub const FAILPOINTS: &[&str] = &[$($name),*];
    };
}

points! {
    BeforeRecord = "outgoing-before-record",
    AfterRecord = "outgoing-after-record",
    BeforeSent = "outgoing-before-sent",
    AfterSent = "outgoing-after-sent",
    BeforePay = "outgoing-before-pay",
    AfterPay = "outgoing-after-pay",
    BeforeLookup = "outgoing-before-lookup",
    AfterLookup = "outgoing-after-lookup",
    BeforeSettle = "outgoing-before-settle",
    AfterSettle = "outgoing-after-settle",
    BeforeFail = "outgoing-before-fail",
    AfterFail = "outgoing-after-fail",
    BeforeUnknown = "outgoing-before-unknown",
    AfterUnknown = "outgoing-after-unknown",
}

/// Dies here when the environment says so.
#[cfg(feature = "failpoints")]
pub(super) fn reach(point: Point) {
    if std::env::var_os("FAREBOX_FAILPOINT").is_some_and(|wanted| wanted == point.name()) {
        std::process::abort();
    }
}

/// Does nothing: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
pub(super) const fn reach(_: Point) {}
