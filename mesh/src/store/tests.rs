use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{ConnectionTrait as _, Database, DatabaseTransaction, Statement};

use super::*;

/// Notes numbers in the table `inbox`; it refuses 13.
struct Numbers;

#[async_trait]
impl Batch for Numbers {
    type Item = i64;
    type Output = i64;

    async fn apply(&self, tx: &DatabaseTransaction, items: &[i64]) -> Result<Vec<i64>, Error> {
        for item in items {
            if *item == 13 {
                return Err(Error::Event("unlucky".into()));
            }
            note(tx, *item).await?;
        }
        Ok(items.to_vec())
    }
}

async fn note(tx: &DatabaseTransaction, number: i64) -> Result<(), Error> {
    let insert =
        format!("INSERT INTO inbox VALUES ('t', 's', '{number}', '2026-01-01T00:00:00Z', NULL)");
    tx.execute_unprepared(&insert).await?;
    Ok(())
}

async fn open(folder: &tempfile::TempDir) -> Store {
    Store::open_file(folder.path().join("t.db"), &[tables::migrations]).await.unwrap()
}

async fn count(store: &Store) -> i64 {
    let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) FROM inbox");
    let row = store.read().query_one_raw(count).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}

#[tokio::test]
async fn a_bad_item_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let batcher = store.batcher(Numbers);
    let results = batcher.submit(vec![1, 13, 2]).await;
    assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok(), "{results:?}");
    assert_eq!(count(&store).await, 2);
}

#[tokio::test]
async fn an_error_takes_back_its_own_writes_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let good = store.transaction(|tx| Box::pin(note(tx, 1)));
    let bad = store.transaction(|tx| {
        Box::pin(async move {
            note(tx, 2).await?;
            Err::<(), _>(Error::Event("no".into()))
        })
    });
    let (good, bad) = tokio::join!(good, bad);
    assert!(good.is_ok() && bad.is_err());
    assert_eq!(count(&store).await, 1);
}

#[tokio::test]
async fn a_commit_that_fails_is_told_to_all_of_its_group_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let tables = store.transaction(|tx| {
        Box::pin(async move {
            // Such a key is looked at by the commit only.
            let child = "CREATE TABLE child (of TEXT REFERENCES parent (id) \
                         DEFERRABLE INITIALLY DEFERRED)";
            for table in ["CREATE TABLE parent (id TEXT PRIMARY KEY)", child] {
                tx.execute_unprepared(table).await?;
            }
            Ok::<_, Error>(())
        })
    });
    tables.await.unwrap();
    let orphan = store.transaction(|tx| {
        Box::pin(async move {
            tx.execute_unprepared("INSERT INTO child VALUES ('nobody')").await?;
            Ok::<_, Error>(())
        })
    });
    let batcher = store.batcher(Numbers);
    let good = store.transaction(|tx| Box::pin(note(tx, 1)));
    let (good, batch, orphan) = tokio::join!(good, batcher.submit(vec![2]), orphan);
    for told in [good, orphan, batch.into_iter().next().unwrap().map(drop)] {
        assert!(matches!(told, Err(Error::NotCommitted(_))), "{told:?}");
    }
    assert_eq!(count(&store).await, 0);
    assert!(batcher.submit(vec![3]).await[0].is_ok(), "the writer goes on by itself");
    assert_eq!(count(&store).await, 1);
}

#[tokio::test]
async fn a_transaction_that_is_lost_in_the_middle_of_a_group_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let before = store.transaction(|tx| Box::pin(note(tx, 1)));
    let losing = store.transaction(|tx| {
        Box::pin(async move {
            tx.execute_unprepared("ROLLBACK").await?;
            Ok::<_, Error>(())
        })
    });
    // Without a transaction this would be kept by itself.
    let behind = store.transaction(|tx| Box::pin(note(tx, 2)));
    let (before, losing, behind) = tokio::join!(before, losing, behind);
    assert!(before.is_err() && losing.is_err() && behind.is_err(), "{before:?} {behind:?}");
    assert_eq!(count(&store).await, 0);
    store.transaction(|tx| Box::pin(note(tx, 3))).await.unwrap();
    assert_eq!(count(&store).await, 1);
}

#[tokio::test]
async fn what_cannot_be_written_is_an_error_and_the_writer_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let batcher = store.batcher(Numbers);
    assert!(batcher.submit(vec![1]).await[0].is_ok());

    // Another process holds the write lock for longer than a writer waits.
    let mut options = sea_orm::ConnectOptions::new(format!(
        "sqlite://{}?mode=rw",
        folder.path().join("t.db").display()
    ));
    options.max_connections(1);
    let other = Database::connect(options).await.unwrap();
    other.execute_unprepared("BEGIN IMMEDIATE").await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(20), batcher.submit(vec![2])).await;
    assert!(refused.expect("it is answered")[0].is_err());
    let refused = store.transaction(|tx| Box::pin(note(tx, 3)));
    assert!(tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap().is_err());

    other.execute_unprepared("ROLLBACK").await.unwrap();
    other.close().await.unwrap();
    let again = tokio::time::timeout(Duration::from_secs(5), batcher.submit(vec![4])).await;
    assert!(again.expect("it is answered")[0].is_ok());
    assert_eq!(count(&store).await, 2);
}

#[tokio::test]
async fn what_waits_at_the_end_is_written_and_what_comes_later_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let batcher = store.batcher(Numbers);
    let (written, ()) = tokio::join!(batcher.submit(vec![1, 2, 3]), store.close());
    assert!(written.iter().all(Result::is_ok), "{written:?}");
    assert!(batcher.submit(vec![4]).await[0].is_err());
    assert_eq!(count(&open(&folder).await).await, 3);
}

#[tokio::test]
async fn the_log_begins_anew_although_writing_never_rests() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder).await;
    let log = folder.path().join("t.db-wal");
    let mut written = 0;
    for _ in 0..200 {
        let row = "INSERT INTO inbox VALUES ('c', hex(randomblob(500000)), 'e', 0, NULL)";
        let work = store.transaction(move |tx| {
            Box::pin(async move {
                tx.execute_unprepared("DELETE FROM inbox").await?;
                tx.execute_unprepared(row).await?;
                Ok::<_, Error>(())
            })
        });
        work.await.unwrap();
        written += 1_000_000;
    }
    let size = std::fs::metadata(log).unwrap().len();
    assert!(size < written / 2, "{size} of {written}");
    store.close().await;
}
