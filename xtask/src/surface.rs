//! `cargo xtask surface`: holds the public items of each crate to their list in `surface/`.
//!
//! The lists are made of the pages that rustdoc writes, which show what a user of the crate can name: private modules
//! are passed, re-exports stand where they are found, and what is hidden is not there. So a change of the surface is
//! a change of a file, and seen in review. `--write` makes the lists anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub(crate) const USAGE: &str = "\
cargo xtask surface [--write]
  --write           make the lists in `surface/` anew";

/// The crates that users write in their `Cargo.toml`.
const CRATES: &[&str] = &[
    "eventbus",
    "eventbus_aws",
    "eventbus_core",
    "eventbus_kafka",
    "eventbus_nats",
    "eventbus_rabbitmq",
    "eventbus_redis",
    "eventbus_sqlite",
    "eventbus_cli",
    "eventbus_testing",
];
/// What writes the documentation; the test command has it as a step of its own, so that nothing is made twice.
pub(crate) const DOCUMENTATION: &[&str] =
    &["doc", "--workspace", "--no-deps", "--features", "eventbus-testing/conformance"];
/// The workspace, wherever the command is given.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// How many lines of a difference are shown.
const SHOWN: usize = 40;

pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let write = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => false,
        (Some("--write"), None) => true,
        _ => {
            eprintln!("usage: {USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match check(write) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("== if that is meant, run `cargo xtask surface --write` and commit the lists");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("== cannot list the public items: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Compares each list with what the documentation shows, or writes it anew.
fn check(write: bool) -> io::Result<bool> {
    let root = Path::new(ROOT);
    let status = Command::new(env!("CARGO"))
        .args(DOCUMENTATION)
        .arg("--quiet")
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root)
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("`cargo doc` failed ({status})")));
    }
    let mut same = true;
    for name in CRATES {
        let list = root.join("surface").join(format!("{name}.txt"));
        let is = public_items(&documentation(root).join(name), name)?;
        if write {
            fs::create_dir_all(root.join("surface"))?;
            fs::write(&list, is)?;
            continue;
        }
        let was = fs::read_to_string(&list).unwrap_or_default();
        if was != is {
            same = false;
            eprintln!("== the public items of `{name}` are not those of surface/{name}.txt:");
            difference(&was, &is).iter().take(SHOWN).for_each(|line| eprintln!("{line}"));
        }
    }
    Ok(same)
}

fn documentation(root: &Path) -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root.join(target).join("doc"),
        None => root.join("target/doc"),
    }
}

/// Every public item of the crate whose pages are in the folder: its path, its declaration, its methods, and the
/// traits that it implements.
fn public_items(folder: &Path, name: &str) -> io::Result<String> {
    let index = read(&folder.join("all.html"))?;
    let mut pages: Vec<&str> =
        between(&index, "<li><a href=\"", "\"").filter(|page| page.ends_with(".html")).collect();
    pages.sort_unstable();
    let mut list = String::new();
    for page in pages {
        list.push_str(&item(&read(&folder.join(page))?, name, page));
    }
    Ok(list)
}

fn read(page: &Path) -> io::Result<String> {
    fs::read_to_string(page)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", page.display())))
}

/// An item, from its page, whose address is `module/kind.Name.html`.
fn item(page: &str, name: &str, address: &str) -> String {
    let (modules, file) = address.rsplit_once('/').unwrap_or(("", address));
    let (kind, own) = file.trim_end_matches(".html").split_once('.').unwrap_or(("", file));
    let path: Vec<&str> =
        [name].into_iter().chain(modules.split('/').filter(|module| !module.is_empty())).collect();
    let mut item = format!("{kind} {}::{own}\n", path.join("::"));
    let declaration = between(page, "<pre class=\"rust item-decl\">", "</pre>").map(plain);
    let methods = headers(section(page, "implementations-list")).filter(|header| !header.starts_with("impl"));
    let traits =
        headers(section(page, "trait-implementations-list")).filter(|header| header.starts_with("impl"));
    // The compiler's own trait for constants in patterns, which comes with `PartialEq`.
    let traits = traits.filter(|header| !header.contains(" StructuralPartialEq "));
    for line in declaration.chain(methods).chain(traits) {
        let _ = writeln!(item, "    {line}");
    }
    item
}

/// What stands in the part of a page with this id.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let Some((_, from)) = page.split_once(&format!("<div id=\"{id}\">")) else { return "" };
    from.split_once("<h2 id=").map_or(from, |(section, _)| section)
}

/// The declarations in a part of a page: methods, associated items, and `impl` lines.
fn headers(section: &str) -> impl Iterator<Item = String> {
    between(section, "class=\"code-header\">", "</h").map(plain)
}

/// Each text that stands between two others.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).map(move |rest| rest.split_once(end).map_or(rest, |(inner, _)| inner))
}

/// The text of a piece of a page, in one line.
fn plain(html: &str) -> String {
    let html = unfolded(html).replace("<div class=\"where\">", " ");
    let mut pieces = html.split('<');
    let first = pieces.next().unwrap_or_default();
    let behind_tags = pieces.filter_map(|piece| piece.split_once('>')).map(|(_, text)| text);
    let text: String = [first].into_iter().chain(behind_tags).collect();
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&#39;", "'").replace("&quot;", "\"");
    // `ⓘ` opens a note on the type; where lines are broken depends on their length.
    let text = text.replace("&nbsp;", " ").replace("&amp;", "&").replace('ⓘ', "");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace("#[non_exhaustive]", "#[non_exhaustive] ").replace("( ", "(").replace(", )", ")")
}

/// A piece of a page without the words that fold a long declaration, such as "Show 15 methods".
fn unfolded(html: &str) -> String {
    let mut pieces = html.split("<summary");
    let first = pieces.next().unwrap_or_default();
    let behind = pieces.map(|piece| piece.split_once("</summary>").map_or(piece, |(_, rest)| rest));
    [first].into_iter().chain(behind).collect()
}

/// The lines that only one of the two texts has, each behind `-` or `+`.
fn difference(was: &str, is: &str) -> Vec<String> {
    let only = |of: &str, than: &str, sign: char| {
        let than: BTreeSet<&str> = than.lines().collect();
        of.lines()
            .filter(|line| !than.contains(line))
            .map(|line| format!("{sign} {line}"))
            .collect::<Vec<_>>()
    };
    [only(was, is, '-'), only(is, was, '+')].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = concat!(
        "<pre class=\"rust item-decl\"><code>pub struct <a>Reason</a>&lt;&#39;a&gt; { <span>/* private */</span> }</code></pre>",
        "<h2 id=\"implementations\">Implementations</h2><div id=\"implementations-list\">",
        "<h3 class=\"code-header\">impl Reason</h3><h4 class=\"code-header\">pub fn <a>new</a>() -&gt; Self<div class=\"where\">where T: X</div></h4>",
        "</div><h2 id=\"trait-implementations\">Trait</h2><div id=\"trait-implementations-list\">",
        "<h3 class=\"code-header\">impl Clone for Reason</h3><h4 class=\"code-header\">fn clone(&amp;self)</h4>",
        "</div><h2 id=\"blanket-implementations\">Blanket</h2><h3 class=\"code-header\">impl Any for T</h3>",
    );

    #[test]
    fn an_item_is_its_declaration_its_methods_and_its_traits() {
        assert_eq!(
            item(PAGE, "eventbus", "outcome/struct.Reason.html"),
            "struct eventbus::outcome::Reason\n    pub struct Reason<'a> { /* private */ }\n    pub fn new() -> Self where T: X\n    \
             impl Clone for Reason\n"
        );
    }

    #[test]
    fn a_declaration_that_is_folded_is_listed_as_one_that_is_not() {
        let folded = "pub trait Broker {<details><summary class=\"hideme\"><span>Show 15 methods</span></summary> fn \
                      name(&amp;self); }</details>";
        assert_eq!(plain(folded), "pub trait Broker { fn name(&self); }");
    }

    #[test]
    fn a_difference_names_what_went_and_what_came() {
        assert_eq!(difference("a\nb\n", "b\nc\n"), ["- a", "+ c"]);
    }
}
