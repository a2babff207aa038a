//! What loads the proxies: always over loopback, always for a bounded time.

pub(crate) mod bulk;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod open_loop;
pub(crate) mod wrk;
