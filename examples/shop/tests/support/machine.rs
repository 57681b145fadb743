//! A machine of the shop: a process with some of the consumers, and a database that no other machine has.

use shop::database::Database;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;

/// Nothing here takes so long; it ends a test that would wait for ever.
const LONG: Duration = Duration::from_secs(120);

/// Writes down, in the transaction of each consumer, what it did with which order and when, in milliseconds since 1970.
const JOURNAL: &str = "
    create table journal (number integer primary key, what text, order_id text, at integer);
    create trigger mails after insert on sent_mail begin
        insert into journal (what, order_id, at)
        values ('mail', new.order_id, cast(unixepoch('subsec') * 1000 as integer));
    end;
    create trigger reservations after insert on reservation begin
        insert into journal (what, order_id, at)
        values ('reservation', new.order_id, cast(unixepoch('subsec') * 1000 as integer));
    end;
";

pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) database: Database,
    /// The arguments of its program.
    arguments: Vec<String>,
    /// What its program says.
    log: PathBuf,
    process: Option<Child>,
}

/// What a consumer did with an order.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    /// The order's customer, by whom orders are in their order, and its number among the orders of that customer.
    pub(crate) customer: String,
    pub(crate) number: u64,
    /// When, in milliseconds since 1970.
    pub(crate) at: i64,
}

impl Machine {
    /// One that is not switched on.
    pub(crate) async fn new(folder: &Path, name: &'static str, url: &str, groups: &[&str]) -> Self {
        let data = folder.join(format!("{name}.db"));
        let database = Database::open(&data).unwrap();
        database.transaction(|transaction| transaction.execute_batch(JOURNAL)).await.unwrap();
        let data = data.to_str().expect("a folder whose name is text");
        let arguments = ["run", "--url", url, "--data", data, "--only", &groups.join(",")];
        Self {
            name,
            database,
            arguments: arguments.map(str::to_owned).to_vec(),
            log: folder.join(format!("{name}.log")),
            process: None,
        }
    }

    /// Switches it on, and waits until its program runs.
    pub(crate) async fn start(&mut self) {
        let said = File::create(&self.log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
        command.args(&self.arguments).env_remove("EVENTBUS_URL").stdout(Stdio::null()).stderr(said);
        self.process = Some(command.spawn().unwrap());
        until("it runs", async || {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{} has ended: {}", self.name, self.said());
            self.said().contains("Ctrl-C ends it")
        })
        .await;
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Ends its program in the middle of everything.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks its program to end.
    pub(crate) fn ask_to_end(&self) {
        let id = self.process.as_ref().expect("it runs").id();
        let asked = Command::new("sh").args(["-c", &format!("kill -TERM {id}")]).status().unwrap();
        assert!(asked.success(), "{asked}");
    }

    /// Waits until its program has ended.
    pub(crate) async fn ended(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let mut status: Option<ExitStatus> = None;
        until("it ends", async || {
            status = process.try_wait().unwrap();
            status.is_some()
        })
        .await;
        assert!(status.is_some_and(|status| status.success()), "{} ended badly: {}", self.name, self.said());
    }

    /// The mails or the reservations for orders that it did later than `since`, in their order.
    pub(crate) async fn done(&self, what: &'static str, since: i64) -> Vec<Done> {
        let read = self.database.read(move |connection| {
            connection
                .prepare_cached(
                    "select order_id, at from journal where what = ?1 and at > ?2 order by number",
                )?
                .query_map((what, since), |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?
                .collect::<Result<Vec<_>, _>>()
        });
        let done = read.await.unwrap().into_iter().map(|(order, at)| {
            let (customer, number) = order.split_once('-').expect("an order of the load");
            Done { customer: customer.to_owned(), number: number.parse().unwrap(), at }
        });
        done.collect()
    }

    /// A number out of its database.
    pub(crate) async fn count(&self, sql: &'static str) -> u64 {
        let read = self.database.read(move |connection| connection.query_row(sql, [], |row| row.get(0)));
        read.await.unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Only a test that failed leaves one that runs.
            eprintln!("{} has said:\n{}", self.name, self.said());
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
    since.as_millis().try_into().expect("a time before the year 292278994")
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < LONG, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
