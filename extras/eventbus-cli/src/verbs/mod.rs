//! The verbs, one file each.

mod check;
mod dead_letters;
mod groups;
mod log;
mod publish;
mod replay;
mod run;
mod status;
mod subscriptions;
mod tail;
mod topics;
mod topics_in_log;

use crate::failure::Result;
use crate::session::Session;

// What stands here as documentation would be the first line of an application's help.

// Every verb of an application.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Handle events until Ctrl-C or SIGTERM
    Run,
    /// List the subscriptions of this program, and how far each has come
    Subscriptions,
    /// List the event types and declared topics of this program
    Topics,
    /// Run the start-up checks, without starting
    Check(check::Check),
    /// Deliver events of the past again, to one group
    Replay(replay::Replay),
    #[command(flatten)]
    Broker(BrokerVerb),
}

// Every verb of the standalone binary.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum StandaloneVerb {
    /// Count the events of each topic in the log
    Topics(topics_in_log::TopicsInLog),
    #[command(flatten)]
    Broker(BrokerVerb),
}

// The verbs that need no handlers.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum BrokerVerb {
    /// Publish an event
    Publish(Box<publish::Publish>),
    /// Follow what is published
    Tail(tail::Tail),
    /// Ask what was published
    Log(Box<log::Log>),
    /// Show whether the broker answers, and whether each group gets on
    Status,
    /// List, show, mend, re-publish and purge what subscriptions gave up on
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLetters),
    /// List, seek, move and drop the cursors of groups
    #[command(subcommand)]
    Groups(groups::Groups),
}

impl Verb {
    /// Whether the settings of the application matter.
    pub(crate) fn needs_program(&self) -> bool {
        matches!(self, Self::Run | Self::Check(_) | Self::Replay(_) | Self::Broker(BrokerVerb::Publish(_)))
    }

    pub(crate) async fn execute(self, session: &mut Session) -> Result {
        match self {
            Self::Run => run::execute(session).await,
            Self::Subscriptions => subscriptions::execute(session).await,
            Self::Topics => topics::execute(session),
            Self::Check(check) => check.execute(session).await,
            Self::Replay(replay) => replay.execute(session).await,
            Self::Broker(verb) => verb.execute(session).await,
        }
    }
}

impl StandaloneVerb {
    pub(crate) async fn execute(self, session: &mut Session) -> Result {
        match self {
            Self::Topics(topics) => topics.execute(session).await,
            Self::Broker(verb) => verb.execute(session).await,
        }
    }
}

impl BrokerVerb {
    pub(crate) async fn execute(self, session: &mut Session) -> Result {
        match self {
            Self::Publish(publish) => publish.execute(session).await,
            Self::Tail(tail) => tail.execute(session).await,
            Self::Log(log) => log.execute(session).await,
            Self::Status => status::execute(session).await,
            Self::DeadLetters(dead_letters) => dead_letters.execute(session).await,
            Self::Groups(groups) => groups.execute(session).await,
        }
    }
}
