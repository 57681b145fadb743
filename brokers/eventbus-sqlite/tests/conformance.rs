//! The log passes the conformance suite.

use eventbus_sqlite::SqliteBroker;
use eventbus_testing::conformance::Fixture;
use std::time::Duration;

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
        std::fs::remove_dir_all(folder).expect("the folder is removed");
    }
}

eventbus_testing::conformance!(Log);
