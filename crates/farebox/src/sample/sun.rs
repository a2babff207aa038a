//! Sunrise and sunset by the low-precision solar formulas of the Astronomical Almanac: good to about a minute at
//! middle latitudes. Days and minutes are in UTC.

use std::{fmt, str::FromStr};

/// Days from 1970-01-01 to 2000-01-01.
const DAYS_TO_2000: i64 = 10_957;

/// The sun's centre stands this far below the horizon when its upper edge touches it: radius and refraction, in degrees.
const HORIZON: f64 = -0.833;

/// A day of the Gregorian calendar, as days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date(i64);

/// A place on Earth, in degrees; north and east are positive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) lat: f64,
    pub(super) lon: f64,
}

/// What the sun does on one day, in minutes after midnight UTC (below 0 or above 1440 on the neighbouring day).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sun {
    RisesAndSets { rise: f64, noon: f64, set: f64 },
    StaysUp,
    StaysDown,
}

impl Date {
    pub(super) fn from_unix_secs(secs: u64) -> Self {
        Self(i64::try_from(secs / 86_400).unwrap_or_default())
    }

    pub(super) fn plus_days(self, days: i64) -> Self {
        Self(self.0 + days)
    }

    /// Year, month and day. Years are counted from March, so that the leap day comes last.
    fn civil(self) -> (i64, i64, i64) {
        let shifted = self.0 + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    fn from_civil(year: i64, month: i64, day: i64) -> Self {
        let year = if month <= 2 { year - 1 } else { year };
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Self(era * 146_097 + day_of_era - 719_468)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<i64> = text.split('-').filter_map(|part| part.parse().ok()).collect();
        let date = match parts[..] {
            [year @ 1..=9999, month @ 1..=12, day @ 1..=31] => Some(Self::from_civil(year, month, day)),
            _ => None,
        };
        // A day that doesn't exist, like 30 February, comes back as another one.
        date.filter(|date| date.to_string() == text)
            .ok_or_else(|| format!("`{text}` is not a date; write it like 2026-06-21"))
    }
}

impl Place {
    pub(super) fn new(lat: f64, lon: f64) -> Result<Self, String> {
        if !(-90.0..=90.0).contains(&lat) {
            return Err(format!("`lat={lat}` is not a latitude; it goes from -90 to 90"));
        }
        if !(-180.0..=180.0).contains(&lon) {
            return Err(format!("`lon={lon}` is not a longitude; it goes from -180 to 180"));
        }
        Ok(Self { lat, lon })
    }

    /// When the sun rises and sets here on `date`.
    #[expect(clippy::cast_precision_loss, reason = "days since 2000 are far below 2^52")]
    pub(super) fn sun(self, date: Date) -> Sun {
        // Days since noon of 2000-01-01, at local solar noon.
        let days = (date.0 - DAYS_TO_2000) as f64 - self.lon / 360.0;
        let mean_anomaly = (357.529 + 0.985_600_28 * days).to_radians();
        let mean_longitude = 280.459 + 0.985_647_36 * days;
        let ecliptic_longitude =
            (mean_longitude + 1.915 * mean_anomaly.sin() + 0.020 * (2.0 * mean_anomaly).sin()).to_radians();
        let obliquity = (23.439 - 0.000_000_36 * days).to_radians();
        let declination = (obliquity.sin() * ecliptic_longitude.sin()).asin();
        let right_ascension =
            (obliquity.cos() * ecliptic_longitude.sin()).atan2(ecliptic_longitude.cos()).to_degrees();

        // Sundial against clock, in degrees within half a turn either way.
        let equation_of_time = (mean_longitude - right_ascension + 180.0).rem_euclid(360.0) - 180.0;
        let noon = 720.0 - 4.0 * (self.lon + equation_of_time);

        let latitude = self.lat.to_radians();
        let cos_hour_angle = (HORIZON.to_radians().sin() - latitude.sin() * declination.sin())
            / (latitude.cos() * declination.cos());
        if cos_hour_angle < -1.0 {
            return Sun::StaysUp;
        }
        if cos_hour_angle > 1.0 {
            return Sun::StaysDown;
        }
        let half_day = 4.0 * cos_hour_angle.acos().to_degrees();
        Sun::RisesAndSets { rise: noon - half_day, noon, set: noon + half_day }
    }
}

/// `05:43`, of minutes after midnight.
#[expect(clippy::cast_possible_truncation, reason = "minutes of a day")]
pub(super) fn clock_time(minutes: f64) -> String {
    let minutes = (minutes.round() as i64).rem_euclid(1_440);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(lat: f64, lon: f64, date: &str, want: &str) {
        let got = match Place::new(lat, lon).unwrap().sun(date.parse().unwrap()) {
            Sun::RisesAndSets { rise, set, .. } => format!("{} {}", clock_time(rise), clock_time(set)),
            other => format!("{other:?}"),
        };
        assert_eq!(got, want);
    }

    /// The day of the summer solstice in Berlin: almanacs give 04:43 to 21:33 summer time.
    #[test]
    fn the_sun_keeps_to_the_almanac() {
        check(52.52, 13.40, "2026-06-21", "02:43 19:33");
    }

    #[test]
    fn the_sun_stays_up_or_down_beyond_the_polar_circle() {
        check(78.2, 15.6, "2026-06-21", "StaysUp");
        check(78.2, 15.6, "2026-12-21", "StaysDown");
    }

    #[test]
    fn dates_survive_the_round_trip() {
        for text in ["1970-01-01", "2000-02-29", "2026-12-31", "2100-03-01"] {
            assert_eq!(text.parse::<Date>().unwrap().to_string(), text);
        }
        assert_eq!(Date::from_unix_secs(951_782_400).to_string(), "2000-02-29");
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for text in ["2026-02-30", "2026-13-01", "today", "2026-6-1", ""] {
            assert_eq!(
                text.parse::<Date>(),
                Err(format!("`{text}` is not a date; write it like 2026-06-21"))
            );
        }
    }
}
