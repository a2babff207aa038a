//! The body of an answer that is counted: watched as it passes, and what ends its bill.
//!
//! A server doesn't ask for the end of a body whose end it knows, so the bill ends as soon as nothing more can come: with the
//! last frame, with the last byte of a `content-length`, at once where there is no body.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{Bill, price::Ending};

pin_project! {
    /// The inner service's body, as it came.
    #[derive(Debug)]
    pub struct Billed<B> {
        #[pin]
        inner: B,
        tab: Option<Tab>,
    }
}

/// A bill that is still open. Dropped, it is that of a request that was abandoned.
#[derive(Debug)]
struct Tab {
    bill: Box<Bill>,
    /// How many bytes are still to come, where that was said.
    remaining: Option<u64>,
}

/// The answer begins.
pub(super) fn begin<B: Body>(
    response: Response<B>,
    bill: Option<Box<Bill>>,
    is_head: bool,
) -> Response<Billed<B>> {
    let (mut head, inner) = response.into_parts();
    let tab = bill.and_then(|mut bill| {
        bill.answer(head.status, &mut head.headers);
        if is_head || inner.is_end_stream() {
            bill.end(Ending::Whole);
            return None;
        }
        Some(Tab { bill, remaining: length(&head.headers) })
    });
    Response::from_parts(head, Billed { inner, tab })
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl<B: Body<Data = Bytes>> Body for Billed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let polled = ready!(this.inner.as_mut().poll_frame(context));
        let Some(tab) = this.tab else { return Poll::Ready(polled) };
        let ending = match &polled {
            Some(Ok(frame)) => {
                tab.note(frame);
                (tab.remaining == Some(0) || this.inner.is_end_stream()).then_some(Ending::Whole)
            }
            Some(Err(_)) => Some(Ending::Broken),
            None if tab.remaining.is_some_and(|remaining| remaining > 0) => Some(Ending::Broken),
            None => Some(Ending::Whole),
        };
        if let Some(ending) = ending
            && let Some(tab) = this.tab.take()
        {
            tab.bill.end(ending);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Tab {
    fn note(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.bill.chunk(data);
            self.remaining = self.remaining.map(|left| left.saturating_sub(data.len() as u64));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.bill.trailers(trailers);
        }
    }
}
