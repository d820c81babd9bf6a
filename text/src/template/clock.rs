//! `strftime_now` of chat templates: the caller's time, written as Python's `strftime` does in the C locale.

use std::fmt::Write;

use minijinja::{Error, ErrorKind};
use sconce_vocabulary::calendar::Moment;

/// The caller's clock, for templates that print the date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: i64,
    /// Local time minus UTC.
    pub utc_offset_s: i32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time as a calendar and a clock show it.
struct Calendar {
    year: i64,
    /// 1 to 12.
    month: i64,
    day: i64,
    /// 1 to 366.
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Calendar {
    fn of(now: Now) -> Self {
        let local_s = now.unix_s.saturating_add(i64::from(now.utc_offset_s));
        let Moment { year, month, day, hour, minute, second } = Moment::of(local_s);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
        Self {
            year,
            month,
            day,
            day_of_year: before + day + i64::from(is_leap && month > 2),
            weekday: (local_s.div_euclid(86_400) + 4).rem_euclid(7),
            hour,
            minute,
            second,
        }
    }

    fn hour_of_12(&self) -> i64 {
        (self.hour + 11) % 12 + 1
    }
}

/// `datetime.now().strftime(format)`. `datetime.now()` has no zone, so `%z` and `%Z` are empty.
pub(super) fn strftime(format: &str, now: Now) -> Result<String, Error> {
    let time = Calendar::of(now);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut code = rest.next();
        let is_bare = code == Some('-');
        if is_bare {
            code = rest.next();
        }
        let Some(code) = code else {
            return Err(unsupported(format));
        };
        field(&mut out, &time, code, is_bare, now).ok_or_else(|| unsupported(format))?;
    }
    Ok(out)
}

fn unsupported(format: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("strftime_now: format {format:?} is not supported"))
}

/// Writes one `%` field; `is_bare` leaves out the padding (`%-d`).
fn field(out: &mut String, time: &Calendar, code: char, is_bare: bool, now: Now) -> Option<()> {
    let weekday = DAYS[time.weekday as usize];
    let month = MONTHS[time.month as usize - 1];
    let half = if time.hour < 12 { "AM" } else { "PM" };
    let (number, width, pad) = match code {
        'd' => (time.day, 2, '0'),
        'e' => (time.day, 2, ' '),
        'm' => (time.month, 2, '0'),
        'Y' => (time.year, 4, '0'),
        'y' => (time.year.rem_euclid(100), 2, '0'),
        'H' => (time.hour, 2, '0'),
        'I' => (time.hour_of_12(), 2, '0'),
        'M' => (time.minute, 2, '0'),
        'S' => (time.second, 2, '0'),
        'f' => (0, 6, '0'),
        'j' => (time.day_of_year, 3, '0'),
        'w' => (time.weekday, 1, '0'),
        'u' => ((time.weekday + 6) % 7 + 1, 1, '0'),
        's' => (now.unix_s, 1, '0'),
        _ => {
            let text = match code {
                'a' => weekday[..3].to_owned(),
                'A' => weekday.to_owned(),
                'b' | 'h' => month[..3].to_owned(),
                'B' => month.to_owned(),
                'p' => half.to_owned(),
                'z' | 'Z' => String::new(),
                '%' => "%".to_owned(),
                'n' => "\n".to_owned(),
                't' => "\t".to_owned(),
                _ => return composite(out, time, code, now),
            };
            out.push_str(&text);
            return Some(());
        }
    };
    let digits = number.to_string();
    if !is_bare {
        out.extend(std::iter::repeat_n(pad, usize::saturating_sub(width, digits.len())));
    }
    write!(out, "{digits}").ok()
}

fn composite(out: &mut String, time: &Calendar, code: char, now: Now) -> Option<()> {
    let parts = match code {
        'F' => "Y-m-d",
        'T' | 'X' => "H:M:S",
        'R' => "H:M",
        'D' | 'x' => "m/d/y",
        'c' => "a b e H:M:S Y",
        _ => return None,
    };
    for part in parts.chars() {
        if part.is_ascii_alphabetic() {
            field(out, time, part, false, now)?;
        } else {
            out.push(part);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_equal_python() {
        // 2024-02-29 13:05:09 UTC, a Thursday and a leap day; the others by `datetime.fromtimestamp(..).strftime`.
        let leap = Now { unix_s: 1_709_211_909, utc_offset_s: 0 };
        let cases = [
            (leap, "%d %b %Y", "29 Feb 2024"),
            (leap, "%Y-%m-%d %H:%M:%S.%f", "2024-02-29 13:05:09.000000"),
            (leap, "%A, %B %-d, %y %I:%M %p %j", "Thursday, February 29, 24 01:05 PM 060"),
            (
                leap,
                "%c|%x|%X|%D|%F|%T|%e|%w|%u|%%|%z",
                "Thu Feb 29 13:05:09 2024|02/29/24|13:05:09|02/29/24|2024-02-29|13:05:09|29|4|4|%|",
            ),
            (Now { unix_s: 1_709_211_909, utc_offset_s: 11 * 3_600 }, "%d %B %H", "01 March 00"),
            (Now { unix_s: -1, utc_offset_s: 0 }, "%Y-%m-%d %H:%M:%S %a", "1969-12-31 23:59:59 Wed"),
            (Now { unix_s: 0, utc_offset_s: -60 }, "%e|%-H|%-m|%I", "31|23|12|11"),
            (Now { unix_s: 951_782_400, utc_offset_s: 0 }, "%F %j", "2000-02-29 060"),
            (Now { unix_s: 4_107_542_400, utc_offset_s: 0 }, "%F", "2100-03-01"),
        ];
        for (now, format, expected) in cases {
            assert_eq!(strftime(format, now).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        for format in ["%Q", "%", "%-"] {
            assert!(strftime(format, Now { unix_s: 0, utc_offset_s: 0 }).is_err(), "{format}");
        }
    }
}
