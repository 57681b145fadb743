//! The log passes the conformance suite.

use eventbus_sqlite::SqliteBroker;
use eventbus_testing::conformance::Fixture;
use std::time::{Duration, Instant};

struct Log;

impl Fixture for Log {
    type Broker = SqliteBroker;

    const LEASE: Duration = Duration::from_secs(3);

    async fn place() -> String {
        let folder = tempfile::tempdir().expect("a folder").keep();
        folder.join("log.db").into_os_string().into_string().expect("a path in UTF-8")
    }

    async fn open(place: &str) -> SqliteBroker {
        let settings = SqliteBroker::builder(place).lease(Self::LEASE);
        settings.open().await.expect("the log opens")
    }

    async fn clean_up(place: &str) {
        let folder = std::path::Path::new(place).parent().expect("it lies in a folder");
        let since = Instant::now();
        // A reader that is about to close its connection may still make a file beside the log.
        while let Err(error) = std::fs::remove_dir_all(folder) {
            assert!(since.elapsed() < Self::PATIENCE, "the folder is not removed: {error}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

eventbus_testing::conformance!(Log);
