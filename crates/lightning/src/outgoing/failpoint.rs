//! Where a test can kill a process that pays: before and after each write of the journal and each call to the wallet.

crate::failpoints! {
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
