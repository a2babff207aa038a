//! lnd's messages and calls, generated from the trimmed definitions in `proto/`.

#![allow(
    dead_code,
    missing_docs,
    unnameable_types,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::enum_variant_names,
    clippy::large_futures,
    reason = "generated code, which keeps its own style"
)]

#[rustfmt::skip]
pub(crate) mod invoicesrpc;
#[rustfmt::skip]
pub(crate) mod lnrpc;
#[rustfmt::skip]
pub(crate) mod routerrpc;
