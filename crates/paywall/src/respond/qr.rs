//! A text as a QR code: one SVG path in black on white, for a phone that is held up to the screen.
//!
//! The picture is part of the page and needs neither script nor style: only presentation attributes, which no content
//! security policy forbids. It is black on white in dark mode, too, because readers expect it so.

use std::fmt::Write;

use qrcodegen::{QrCode, QrCodeEcc};

/// Light modules all around, as the standard asks for.
const QUIET: i32 = 4;

/// The invoice as a QR code of its `lightning:` link; `None` if it is longer than any QR code can hold. In capitals, which
/// the specification of invoices allows, it takes a third less room than as it is written.
pub(super) fn invoice(invoice: &str) -> Option<String> {
    let link = format!("LIGHTNING:{}", invoice.to_ascii_uppercase());
    // It is read from a screen: what it needs to be is small.
    let code = QrCode::encode_text(&link, QrCodeEcc::Low).ok()?;
    let side = code.size() + 2 * QUIET;
    let mut svg = String::with_capacity(16 << 10);
    write!(
        svg,
        "<svg role=\"img\" aria-label=\"The invoice as a QR code\" width=\"280\" height=\"280\" \
         viewBox=\"0 0 {side} {side}\" shape-rendering=\"crispEdges\">\
         <rect width=\"{side}\" height=\"{side}\" fill=\"#fff\"/><path d=\""
    )
    .expect("writing to a string");
    for y in 0..code.size() {
        let mut x = 0;
        while x < code.size() {
            let dark = (x..code.size()).take_while(|x| code.get_module(*x, y)).count();
            let run = i32::try_from(dark).expect("a QR code is 177 modules wide at most");
            if run > 0 {
                write!(svg, "M{} {}h{run}v1h-{run}z", x + QUIET, y + QUIET).expect("writing to a string");
            }
            x += run + 1;
        }
    }
    svg.push_str("\"/></svg>");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The dark modules of a picture, read from its path.
    fn modules(svg: &str) -> Vec<(i32, i32)> {
        let path = svg.split("d=\"").nth(1).unwrap().split('"').next().unwrap();
        let runs = path.split('M').skip(1).map(|run| {
            let (at, rest) = run.split_once('h').unwrap();
            let (x, y) = at.split_once(' ').unwrap();
            let length: i32 = rest.split_once('v').unwrap().0.parse().unwrap();
            (x.parse::<i32>().unwrap(), y.parse::<i32>().unwrap(), length)
        });
        runs.flat_map(|(x, y, length)| (x..x + length).map(move |x| (x, y))).collect()
    }

    #[test]
    fn the_picture_has_every_dark_module_and_no_other() {
        let svg = invoice("lnbcrt1qqqq").unwrap();
        let code = QrCode::encode_text("LIGHTNING:LNBCRT1QQQQ", QrCodeEcc::Low).unwrap();
        let all = (0..code.size()).flat_map(|y| (0..code.size()).map(move |x| (x, y)));
        let want: Vec<(i32, i32)> =
            all.filter(|(x, y)| code.get_module(*x, *y)).map(|(x, y)| (x + QUIET, y + QUIET)).collect();
        assert_eq!(modules(&svg), want);
    }

    #[test]
    fn an_invoice_is_written_in_the_mode_that_takes_least_room() {
        let usual = "lnbc10n1".to_owned() + &"q".repeat(300);
        let capitals =
            QrCode::encode_text(&format!("LIGHTNING:{}", usual.to_uppercase()), QrCodeEcc::Low).unwrap();
        let small = QrCode::encode_text(&format!("lightning:{usual}"), QrCodeEcc::Low).unwrap();
        assert!(capitals.size() < small.size());
    }

    #[test]
    fn what_no_code_can_hold_has_no_picture() {
        assert_eq!(invoice(&"q".repeat(5_000)), None);
    }
}
