//! The API that the demo sells when it is not given one: when the sun rises and sets.
//!
//! It answers from arithmetic alone, so it works on a machine without a network, and it is something one may want to
//! know. `GET /` is free and says how to ask; `GET /v1/sun` and `GET /v1/sun/year` are for sale. It knows nothing of
//! payments: that is the gateway's business.

pub(crate) mod echo;
mod sun;

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use farebox_lightning::clock::Clock;
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use self::sun::{Date, Place, Sun};

/// The routes of the sample API. `clock` tells which day it is when the question doesn't.
pub(crate) fn router(clock: Arc<dyn Clock>) -> Router {
    Router::new()
        .route("/", get(about))
        .route("/v1/sun", get(day))
        .route("/v1/sun/year", get(year))
        .with_state(clock)
}

/// Where, and on which day.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    lat: f64,
    lon: f64,
    date: Option<String>,
}

impl Question {
    fn read(&self, clock: &dyn Clock) -> Result<(Place, Date), String> {
        let place = Place::new(self.lat, self.lon)?;
        let date = match &self.date {
            Some(text) => text.parse()?,
            None => Date::from_unix_secs(clock.now().secs()),
        };
        Ok((place, date))
    }
}

async fn about() -> Json<Value> {
    Json(json!({
        "name": "sun",
        "about": "when the sun rises and sets, computed, in UTC",
        "paid": {
            "/v1/sun?lat=52.52&lon=13.40": "one day (today, or &date=2026-06-21)",
            "/v1/sun/year?lat=52.52&lon=13.40": "a year of days, one JSON line each, streamed",
        },
    }))
}

async fn day(State(clock): State<Arc<dyn Clock>>, Query(question): Query<Question>) -> Response {
    match question.read(&*clock) {
        Ok((place, date)) => Json(answer(place, date)).into_response(),
        Err(reason) => refusal(&reason),
    }
}

async fn year(State(clock): State<Arc<dyn Clock>>, Query(question): Query<Question>) -> Response {
    match question.read(&*clock) {
        Ok((place, from)) => {
            let days = (0..365).map(move |n| {
                let line = format!("{}\n", answer(place, from.plus_days(n)));
                Ok::<_, Infallible>(Bytes::from(line))
            });
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream::iter(days)))
                .into_response()
        }
        Err(reason) => refusal(&reason),
    }
}

fn refusal(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": reason }))).into_response()
}

fn answer(place: Place, date: Date) -> Value {
    let times = match place.sun(date) {
        Sun::RisesAndSets { rise, noon, set } => {
            json!({ "sunrise": sun::clock_time(rise), "noon": sun::clock_time(noon), "sunset": sun::clock_time(set) })
        }
        Sun::StaysUp => json!({ "polar": "day" }),
        Sun::StaysDown => json!({ "polar": "night" }),
    };
    let mut answer = json!({ "date": date.to_string(), "lat": place.lat, "lon": place.lon, "zone": "UTC" });
    if let (Some(answer), Some(times)) = (answer.as_object_mut(), times.as_object()) {
        answer.extend(times.clone());
    }
    answer
}
