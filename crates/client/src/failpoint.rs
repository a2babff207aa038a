//! Where a test can kill a buyer: before and after each write of the journal, and around the request that shows a new
//! credential. The places of the payment itself are in `farebox_lightning::outgoing::FAILPOINTS`.

farebox_lightning::failpoints! {
    BeforeReserve = "client-before-reserve",
    AfterReserve = "client-after-reserve",
    BeforeAsk = "client-before-ask",
    AfterAsk = "client-after-ask",
    BeforeAnswer = "client-before-answer",
    AfterAnswer = "client-after-answer",
    BeforeRecord = "client-before-record",
    AfterRecord = "client-after-record",
    BeforeAdopt = "client-before-adopt",
    AfterAdopt = "client-after-adopt",
    BeforeRenew = "client-before-renew",
    AfterRenew = "client-after-renew",
    BeforeRetry = "client-before-retry",
    AfterRetry = "client-after-retry",
    BeforeNote = "client-before-note",
    AfterNote = "client-after-note",
    BeforeRelease = "client-before-release",
    AfterRelease = "client-after-release",
    BeforeAcknowledge = "client-before-acknowledge",
    AfterAcknowledge = "client-after-acknowledge",
    BeforeForget = "client-before-forget",
    AfterForget = "client-after-forget",
}

/// A write of the journal between its two places. Begun before anything is locked, it ends when all else has been let go of.
pub(crate) struct Write(Point);

impl Write {
    pub(crate) fn between(before: Point, after: Point) -> Self {
        reach(before);
        Self(after)
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        reach(self.0);
    }
}
