//! The user's editor, for a payload.

use crate::failure::{Failure, Result};
use crate::json;
use crate::signals;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// The payload after the user has edited it; none where it is as it was.
pub(crate) fn edit(payload: &[u8], is_json: bool) -> Result<Option<Vec<u8>>> {
    let pretty = json::pretty(payload).filter(|_| is_json).map(|json| json + "\n");
    let before = pretty.map_or_else(|| payload.to_vec(), String::into_bytes);
    let suffix = if is_json { ".json" } else { ".bin" };
    let failed = |error: io::Error| Failure::new(format!("cannot hand the payload to an editor: {error}"));
    let mut file = tempfile::Builder::new().prefix("eventbus-").suffix(suffix).tempfile().map_err(failed)?;
    file.write_all(&before).and_then(|()| file.flush()).map_err(failed)?;
    open(file.path())?;
    // An editor may have put another file in its place.
    let after = fs::read(file.path()).map_err(failed)?;
    if after == before {
        return Ok(None);
    }
    Ok(Some(if is_json { unmarked(after).map_err(failed)?.trim_ascii().to_vec() } else { after }))
}

/// The payload in a file, or on standard input for `-`.
pub(crate) fn read(file: &Path, is_json: bool) -> Result<Vec<u8>> {
    let mut payload = Vec::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_end(&mut payload).map(|_| ())
    } else {
        fs::read(file).map(|bytes| payload = bytes)
    };
    match read.and_then(|()| if is_json { unmarked(payload) } else { Ok(payload) }) {
        Ok(payload) => Ok(payload),
        Err(error) => Err(Failure::new(format!("cannot read {}: {error}", file.display()))),
    }
}

fn unmarked(payload: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut rest = Vec::new();
    json::unmarked(io::Cursor::new(payload))?.read_to_end(&mut rest)?;
    Ok(rest)
}

fn open(file: &Path) -> Result {
    let name = ["VISUAL", "EDITOR"]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()));
    let Some(name) = name else {
        return Err(Failure::new(
            "there is no editor; set EDITOR, or give the payload with `--payload <file>`",
        ));
    };
    let words = shlex::split(&name).filter(|words| !words.is_empty());
    let Some((program, arguments)) = words.as_deref().and_then(<[String]>::split_first) else {
        return Err(Failure::new(format!("EDITOR is no command: {name}")));
    };
    signals::leave_interrupts();
    match Command::new(program).args(arguments).arg(file).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(format!("the editor ended with {status}; nothing was delivered"))),
        Err(error) => Err(Failure::new(format!("cannot start the editor `{program}`: {error}; set EDITOR"))),
    }
}
