//! `check`: what a start would refuse.

use crate::failure::{Failure, Result};
use crate::json::{self, Object};
use crate::output::{BAD, CARE, GOOD, paint};
use crate::session::Session;
use crate::text::{counted, printable_lines, wrapped};
use eventbus_core::census::{self, Findings};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Check {
    /// Fail where there are warnings, too
    #[arg(long)]
    strict: bool,
}

impl Check {
    pub(super) async fn execute(self, session: &mut Session) -> Result {
        let findings = find(session).await?;
        show(session, &findings)?;
        if !findings.mistakes.is_empty() || self.strict && !findings.warnings.is_empty() {
            return Err(Failure::Told);
        }
        let out = &mut session.out;
        if out.json {
            return Ok(());
        }
        let subscriptions = counted(census::subscribers().len() as u64, "subscription");
        let events = counted(census::events().len() as u64, "event type");
        out.line(format_args!("{} {subscriptions} and {events} checked", paint(GOOD, "✓")))
    }
}

async fn find(session: &mut Session) -> Result<Findings> {
    let new = session.new_log();
    let findings = match &new {
        Some(_) => without_log(session).await?,
        None => {
            // Otherwise a start makes what is missing.
            let topology = session.url.contains("topology=check");
            session.expect_log();
            session.builder.check_at(&session.url, topology).await?
        }
    };
    if let Some(log) = new {
        session
            .out
            .remark(&format!("there is no log `{}` yet; `run` and `publish` create it", log.display()));
    }
    Ok(findings)
}

fn show(session: &mut Session, findings: &Findings) -> Result {
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
    Ok(())
}

/// The checks beside an empty log, which is gone afterwards: whoever checks creates none.
async fn without_log(session: &Session) -> Result<Findings> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let folder =
        std::env::temp_dir().join(format!("eventbus-check-{}-{}", std::process::id(), now.as_nanos()));
    std::fs::create_dir(&folder)
        .map_err(|error| Failure::new(format_args!("cannot create `{}`: {error}", folder.display())))?;
    let options = session.url.split_once('?').map(|(_, options)| format!("?{options}")).unwrap_or_default();
    let url = format!("sqlite:{}{options}", folder.join("empty.db").display());
    let findings = session.builder.check(&url).await;
    // What is left of it lies where it is cleared away.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(findings?)
}
