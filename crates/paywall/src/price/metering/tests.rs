use http::{HeaderValue, header};

use super::*;
use crate::price::{PerMillion, TokenRates, settle_cost};

const RESERVE: Msat = Msat::new(1_000);

fn metered(meter: Meter) -> Metering {
    Metering::new(Arc::new(Cost::Metered { reserve: RESERVE, base: Msat::new(5), meter }))
}

fn tokens(rates: Rates) -> Metering {
    metered(Meter::Usage { shape: Arc::default(), rates })
}

/// A millisatoshi for each unit of input, two for one of output.
fn rates() -> Rates {
    let otherwise = TokenRates { input: PerMillion(1_000_000), output: PerMillion(2_000_000) };
    Rates { otherwise: Some(otherwise), ..Rates::default() }
}

fn answer(content_type: &'static str) -> HeaderMap {
    [(header::CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect()
}

#[track_caller]
fn check(metering: &Metering, ending: Ending, want: &str, charged: u64) {
    let Metered { observed, why } = metering.clone().end(ending);
    let text = match (observed, why) {
        (Observed::Known(cost), None) => format!("{} known", cost.get()),
        (Observed::Estimated(cost), Some(why)) => format!("{} estimated {why:?}", cost.get()),
        (Observed::Unreadable, Some(why)) => format!("{why:?}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(text, want, "{ending:?}");
    let charge = settle_cost(RESERVE, Msat::new(500), observed, ending);
    assert_eq!(charge.from_reserve.get() + charge.from_left.get(), charged, "{ending:?}");
}

#[test]
fn a_fixed_price_is_known_from_the_start() {
    let mut fixed = Metering::new(Arc::new(Cost::Fixed(RESERVE)));
    check(&fixed, Ending::Abandoned, "1000 known", 1_000);
    check(&fixed, Ending::Failed, "1000 known", 0);
    fixed.answer(&HeaderMap::new());
    fixed.chunk(b"x");
    check(&fixed, Ending::Whole, "1000 known", 1_000);
    check(&fixed, Ending::Broken, "1000 known", 0);
}

#[test]
fn bytes_are_counted_as_they_pass_in_both_directions() {
    let mut bytes = metered(Meter::Bytes { request: PerMillion(1_000_000), response: PerMillion(3_000_000) });
    bytes.request(7);
    bytes.request(3);
    check(&bytes, Ending::Abandoned, "15 known", 15);
    bytes.answer(&HeaderMap::new());
    bytes.chunk(&[0; 20]);
    check(&bytes, Ending::Abandoned, "75 known", 75);
    bytes.chunk(&[0; 20]);
    check(&bytes, Ending::Whole, "135 known", 135);
    check(&bytes, Ending::Broken, "135 known", 0);
    // Beyond the reserve, and beyond all that is left.
    bytes.chunk(&[0; 400]);
    check(&bytes, Ending::Whole, "1335 known", 1_335);
    bytes.chunk(&[0; 400]);
    check(&bytes, Ending::Whole, "2535 known", 1_500);
}

#[test]
fn usage_is_charged_as_told_and_estimated_when_the_buyer_hangs_up_before() {
    let mut stream = tokens(rates());
    stream.request(40);
    check(&stream, Ending::Abandoned, "15 estimated Missing", 15);
    check(&stream, Ending::Failed, "Missing", 0);
    stream.answer(&answer("text/event-stream"));
    for _ in 0..7 {
        stream.chunk(b"data: {\"model\":\"m\",\"choices\":[]}\n\n");
    }
    check(&stream, Ending::Abandoned, "29 estimated Missing", 29);
    check(&stream, Ending::Broken, "Missing", 0);
    check(&stream, Ending::Whole, "Missing", 1_000);
    stream.chunk(b"data: {\"model\":\"m\",\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7}}\n\n");
    check(&stream, Ending::Abandoned, "30 known", 30);
    check(&stream, Ending::Whole, "30 known", 30);
    check(&stream, Ending::Broken, "30 known", 0);
}

#[test]
fn an_endless_stream_that_is_abandoned_never_costs_more_than_the_reserve() {
    let mut stream = tokens(rates());
    stream.answer(&answer("text/event-stream"));
    for _ in 0..2_000 {
        stream.chunk(b"data: {}\n\n");
    }
    check(&stream, Ending::Abandoned, "4005 estimated Missing", 1_000);
}

#[test]
fn a_total_counts_at_the_dearer_rate() {
    let mut total = tokens(rates());
    total.answer(&answer("application/json"));
    total.chunk(br#"{"usage":{"total_tokens":10}}"#);
    check(&total, Ending::Whole, "25 known", 25);
}

#[test]
fn the_model_is_the_answers_own() {
    let cheap = TokenRates { input: PerMillion(1_000_000), output: PerMillion(0) };
    let dear = TokenRates { input: PerMillion(9_000_000), output: PerMillion(0) };
    let models = [("cheap*".to_owned(), cheap), ("dear".to_owned(), dear)].into();
    let read = |body: &[u8]| {
        let mut json = tokens(Rates { models: Clone::clone(&models), otherwise: None });
        json.request(8);
        json.answer(&answer("application/json"));
        json.chunk(body);
        json
    };
    check(&read(br#"{"model":"cheap-1","usage":{"prompt_tokens":10}}"#), Ending::Whole, "15 known", 15);
    check(&read(br#"{"model":"dear","usage":{"prompt_tokens":10}}"#), Ending::Whole, "95 known", 95);
    let unknown = read(br#"{"model":"new","usage":{"prompt_tokens":10}}"#);
    check(&unknown, Ending::Whole, "Model", 1_000);
    // The dearest there is, for the request's two units.
    check(&unknown, Ending::Abandoned, "23 estimated Model", 23);
    check(&read(br#"{"usage":{"prompt_tokens":10}}"#), Ending::Whole, "Model", 1_000);
}

#[test]
fn an_upstream_may_say_what_it_costs() {
    let name = HeaderName::from_static("x-cost");
    let said = |values: &[&'static str]| {
        let mut header = metered(Meter::Header(name.clone()));
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(&name, HeaderValue::from_static(value));
        });
        header.answer(&headers);
        header
    };
    check(&said(&["70"]), Ending::Whole, "75 known", 75);
    check(&said(&["70msat"]), Ending::Abandoned, "75 known", 75);
    check(&said(&["1sat"]), Ending::Whole, "1005 known", 1_005);
    check(&said(&["0"]), Ending::Whole, "5 known", 5);
    check(&said(&["70"]), Ending::Broken, "75 known", 0);
    for odd in ["-1", "1.5", "", "7 apples", "2100000000000000001", "99999999999999999999"] {
        check(&said(&[odd]), Ending::Whole, "Header", 1_000);
    }
    check(&said(&["1", "2"]), Ending::Whole, "Header", 1_000);
    check(&said(&[]), Ending::Whole, "NoHeader", 1_000);
    let silent = metered(Meter::Header(name.clone()));
    assert_eq!(silent.header(), Some(&name), "it is taken out of the answer");
    check(&silent, Ending::Abandoned, "NoHeader", 0);
    check(&silent, Ending::Failed, "NoHeader", 0);
}

#[test]
fn usage_that_a_stream_tells_before_its_end_is_not_what_the_rest_of_it_costs() {
    let mut stream = tokens(rates());
    stream.answer(&answer("text/event-stream"));
    stream.chunk(b"data: {\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":0}}\n\n");
    check(&stream, Ending::Abandoned, "35 known", 35);
    for _ in 0..100 {
        stream.chunk(b"data: {\"choices\":[\"word\"]}\n\n");
    }
    check(&stream, Ending::Abandoned, "207 estimated Truncated", 207);
    check(&stream, Ending::Whole, "35 known", 35);
    // Told again, it counts; what is no event changes nothing.
    stream.chunk(b"data: {\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":60}}\n\ndata: [DONE]\n\n");
    check(&stream, Ending::Abandoned, "155 known", 155);
}

#[test]
fn a_cost_that_nobody_could_be_asked_for_is_unreadable() {
    let mut header = metered(Meter::Header(HeaderName::from_static("x-cost")));
    let costs =
        |text| [(HeaderName::from_static("x-cost"), HeaderValue::from_static(text))].into_iter().collect();
    header.answer(&costs("99999999999995"));
    check(&header, Ending::Whole, "100000000000000 known", 1_500);
    header.answer(&costs("99999999999996"));
    check(&header, Ending::Whole, "Absurd", 1_000);
}
