//! Dates and times of day in UTC from Unix times, and back: pure, so the clock stays with the caller.

const DAY_S: i64 = 24 * 60 * 60;

/// A moment as a calendar and a clock show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl Moment {
    pub fn of(unix_s: i64) -> Self {
        let (year, month, day) = civil(unix_s.div_euclid(DAY_S));
        let second = unix_s.rem_euclid(DAY_S);
        Self { year, month, day, hour: second / 3_600, minute: second / 60 % 60, second: second % 60 }
    }
}

/// `2023-11-14T22:13:20Z`.
pub fn rfc3339(unix_s: u64) -> String {
    let Moment { year, month, day, hour, minute, second } = Moment::of(i64::try_from(unix_s).unwrap_or(i64::MAX));
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The day of a Unix time, counted from 1970-01-01.
pub fn day_of(unix_s: u64) -> u32 {
    u32::try_from(unix_s / DAY_S.unsigned_abs()).unwrap_or(u32::MAX)
}

/// `2026-11-22`.
pub fn date_of(day: u32) -> String {
    let (year, month, day) = civil(i64::from(day));
    format!("{year:04}-{month:02}-{day:02}")
}

/// The first day of a day's month.
pub fn month_start(day: u32) -> u32 {
    let of_month = civil(i64::from(day)).2;
    day - u32::try_from(of_month - 1).unwrap_or(0)
}

/// The day of a date such as `2026-11-22`.
pub fn parse_date(text: &str) -> Option<u32> {
    let mut parts = text.splitn(3, '-');
    let mut number = || parts.next()?.parse::<u32>().ok().map(i64::from);
    let (year, month, day) = (number()?, number()?, number()?);
    let is_possible = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    let found = is_possible.then(|| days(year, month, day))?;
    // Rules out the 31st of a month that has 30 days.
    (civil(found) == (year, month, day)).then(|| u32::try_from(found).ok())?
}

/// The Unix time of a moment in UTC such as `2023-11-14T22:13:20Z`; fractions of a second are left out.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.trim().split_once(['T', 't'])?;
    let time = rest.strip_suffix(['Z', 'z']).or_else(|| rest.strip_suffix("+00:00"))?;
    let time = match time.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit()) => whole,
        Some(_) => return None,
        None => time,
    };
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok().filter(|_| part.len() == 2));
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let is_possible = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    let day = u64::from(parse_date(date)?);
    is_possible.then(|| day * DAY_S.unsigned_abs() + hour * 3_600 + minute * 60 + second)
}

/// Year, month and day of a day counted from 1970-01-01. After Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>): years begin in March, so that the leap day is last, and
/// 400 of them are an era, which always has the same days.
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_month)
}

/// The reverse, `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_wants_them() {
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
            assert_eq!(parse_rfc3339(text), Some(unix_s));
        }
        assert_eq!(parse_rfc3339("2023-11-14T22:13:20.123+00:00"), Some(1_700_000_000));
        for text in ["", "2023-11-14", "2023-11-14T22:13Z", "2023-11-14T25:13:20Z", "2023-11-31T22:13:20Z"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        for text in ["2023-11-14T22:13:20", "2023-11-14T22:13:20.Z", "2023-11-14T22:13:20:1Z", "2023-11-14T2:13:20Z"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
        let before = Moment { year: 1969, month: 12, day: 31, hour: 23, minute: 59, second: 59 };
        assert_eq!(Moment::of(-1), before);
    }

    #[test]
    fn days_and_dates_are_the_same_thing() {
        for (day, date) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_779, "2026-11-22"),
        ] {
            assert_eq!(date_of(day), date);
            assert_eq!(parse_date(date), Some(day), "{date}");
        }
        for day in (0..40_000).step_by(17) {
            assert_eq!(parse_date(&date_of(day)), Some(day));
        }
        for bad in
            ["", "2026", "2026-13-01", "2026-02-29", "2026-00-10", "2026-01-00", "1969-12-31", "a-b-c", "2026-1-1-1"]
        {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
        assert_eq!(date_of(month_start(20_779)), "2026-11-01");
        assert_eq!(day_of(20_779 * 86_400 + 5), 20_779);
    }
}
