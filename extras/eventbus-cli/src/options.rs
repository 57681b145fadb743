//! The options that all verbs share.

use crate::output::Output;

// A comment here would be the first line of the application's help, since clap takes it for that; it does not look into
// a macro.
#[doc = concat!(
    "Options of every verb: which broker, and how to write. An application with verbs of its own flattens them into ",
    "its parser."
)]
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
#[non_exhaustive]
pub struct Options {
    /// The address of the broker
    #[arg(
        long,
        global = true,
        env = "EVENTBUS_URL",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite:eventbus.db"
    )]
    pub url: String,
    /// Write JSON, one object per line
    #[arg(long, global = true)]
    pub json: bool,
    /// When to write in colour; `auto` respects NO_COLOR
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: clap::ColorChoice,
    /// Write times as they are, and not how long ago, where a terminal shows them
    #[arg(long, global = true)]
    pub absolute_times: bool,
}

impl Options {
    pub(crate) fn output(&self) -> Output {
        Output::standard(self.json, self.color, self.absolute_times)
    }
}
