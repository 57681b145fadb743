//! `check`: what a start would refuse.

use crate::failure::{Failure, Result};
use crate::json::{self, Object};
use crate::output::{BAD, CARE, GOOD, paint};
use crate::session::Session;
use crate::text::{counted, printable_lines, wrapped};
use eventbus_core::census;

pub(super) async fn execute(session: &mut Session) -> Result {
    let findings = session.builder.check(&session.url).await?;
    let out = &mut session.out;
    if out.json {
        let list = |texts: &[String]| texts.iter().map(|text| json::string(text)).collect::<Vec<_>>();
        out.object(
            Object::new()
                .list("mistakes", list(&findings.mistakes))
                .list("warnings", list(&findings.warnings)),
        )?;
    } else {
        let width = out.width;
        let found = |style, name: &str, text: &str| {
            let text = printable_lines(&format!("{name} {text}"));
            let lines = text.lines().flat_map(|line| match width {
                Some(width) => wrapped(line, width.saturating_sub(2).max(16)),
                None => vec![line.to_owned()],
            });
            let text = lines.collect::<Vec<_>>().join("\n  ");
            format!("{}{}", paint(style, name), text.strip_prefix(name).unwrap_or(&text))
        };
        for warning in &findings.warnings {
            out.line(found(CARE, "warning:", warning))?;
        }
        for mistake in &findings.mistakes {
            out.line(found(BAD, "mistake:", mistake))?;
        }
    }
    if !findings.mistakes.is_empty() {
        return Err(Failure::Told);
    }
    if !out.json {
        let subscriptions = counted(census::subscribers().len() as u64, "subscription");
        let events = counted(census::events().len() as u64, "event type");
        out.line(format_args!("{} {subscriptions} and {events} checked", paint(GOOD, "✓")))?;
    }
    Ok(())
}
