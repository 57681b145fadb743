//! Whether a call was refused because of the clock of this machine: a signature holds for some minutes. Pure.

use eventbus_core::counted::counted;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

/// The reasons that say so.
const CLOCK: &[&str] = &["RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"];
/// How it is said where the reason is the signature.
const SAID: &[&str] = &["Signature expired", "Signature not yet current"];
const SIGNATURE: &[&str] = &["SignatureDoesNotMatch", "InvalidSignature"];
/// So many minutes the clocks may be apart. Amazon takes five.
const APART: i64 = 4;

/// What to do, where it is the clock. `date` is that of the answer, by the server's.
pub(crate) fn is_wrong(code: &str, said: &str, date: Option<&str>, now: Timestamp) -> Option<String> {
    let among = |text: &str, all: &[&str]| all.iter().any(|known| text.contains(known));
    let is_said = among(code, CLOCK) || among(said, SAID);
    let behind = date.and_then(|date| minutes_behind(date, now)).filter(|minutes| minutes.abs() > APART);
    let how = match behind {
        Some(minutes) if is_said || among(code, SIGNATURE) => {
            let side = if minutes > 0 { "behind" } else { "ahead of" };
            format!("{} {side} the server's", counted(minutes.unsigned_abs(), "minute"))
        }
        _ if is_said => "wrong".to_owned(),
        _ => return None,
    };
    Some(format!("the clock of this machine is {how}; set it, as by NTP"))
}

/// By how many minutes this clock is behind that of whoever wrote the date.
fn minutes_behind(date: &str, now: Timestamp) -> Option<i64> {
    let theirs = rfc2822::parse(date).ok()?.timestamp();
    Some((theirs.as_second() - now.as_second()) / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_so_or_comes_from_a_clock_that_is_far_away_is_the_clock() {
        let now = "2026-11-28T06:00:00Z".parse().unwrap();
        let hour = "Sat, 28 Nov 2026 07:00:10 GMT";
        let expired = "Signature expired: 20261128T060000Z is now earlier than 20261128T065510Z";
        for (code, said, date, how) in [
            ("RequestTimeTooSkewed", "so it is", None, Some("is wrong; set it")),
            ("SignatureDoesNotMatch", expired, None, Some("is wrong; set it")),
            ("SignatureDoesNotMatch", expired, Some(hour), Some("is 60 minutes behind the server's; set it")),
            ("InvalidSignatureException", "so it is", Some(hour), Some("60 minutes behind")),
            ("RequestExpired", "so it is", Some("Sat, 28 Nov 2026 05:54:00 GMT"), Some("6 minutes ahead of")),
            ("SignatureDoesNotMatch", "so it is", Some("Sat, 28 Nov 2026 06:03:00 GMT"), None),
            ("SignatureDoesNotMatch", "so it is", Some("some day"), None),
            ("SignatureDoesNotMatch", "so it is", None, None),
            ("AccessDenied", "so it is", Some(hour), None),
        ] {
            let told = is_wrong(code, said, date, now);
            assert_eq!(told.is_some(), how.is_some(), "{code} {date:?}: {told:?}");
            assert!(told.unwrap_or_default().contains(how.unwrap_or_default()), "{code} {date:?}");
        }
    }
}
