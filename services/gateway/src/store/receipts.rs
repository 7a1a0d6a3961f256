// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The history of receipts: written in batches by one thread, kept within bounds of number, bytes and age.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hearth_pool::{InvocationId, Receipt};
use hearth_protocol::SmallName;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{StateError, Store, connect, query};

/// How many are removed at once beyond what the bounds ask, in parts of the whole, so that removal is rare.
const SLACK_PARTS: u64 = 64;

/// The bounds of the history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiptLimits {
    pub(crate) number_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) age_max: Duration,
}

/// The most bytes of receipts that one look at the logs reads; older ones are left out.
pub(crate) const LOGGED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The history, as the one thread that writes it has it.
#[derive(Debug)]
pub(crate) struct History {
    connection: Connection,
    limits: ReceiptLimits,
    number: u64,
    bytes: u64,
}

impl History {
    fn load(connection: Connection, limits: ReceiptLimits) -> Result<Self, StateError> {
        let totals = connection.query_row(
            "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM receipts",
            [],
            |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
        );
        let (number, bytes) = totals.map_err(query("count the receipts"))?;
        let unsigned = |number| u64::try_from(number).unwrap_or(0);
        Ok(Self {
            connection,
            limits,
            number: unsigned(number),
            bytes: unsigned(bytes),
        })
    }

    /// Adds receipts in one transaction, and lets go of the oldest beyond the bounds.
    pub(crate) fn write_batch(&mut self, batch: &[Arc<Receipt>]) -> rusqlite::Result<()> {
        let (mut number, mut bytes) = (self.number, self.bytes);
        let transaction = self.connection.transaction()?;
        {
            let sql = "INSERT OR REPLACE INTO receipts VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let mut insert = transaction.prepare_cached(sql)?;
            for receipt in batch {
                let Ok(json) = serde_json::to_string(&**receipt) else {
                    continue;
                };
                let received_ms = i64::try_from(receipt.received_ms).unwrap_or(i64::MAX);
                let size = json.len() as u64;
                insert.execute(params![
                    receipt.invocation.to_string(),
                    receipt.function.as_str(),
                    received_ms,
                    i64::try_from(size).unwrap_or(i64::MAX),
                    i64::try_from(receipt.log.len()).unwrap_or(i64::MAX),
                    json
                ])?;
                (number, bytes) = (number + 1, bytes + size);
            }
        }
        while self.limits.number_max < number || self.limits.bytes_max < bytes {
            let surplus = number.saturating_sub(self.limits.number_max);
            let removed = remove_oldest(&transaction, surplus + number / SLACK_PARTS + 1)?;
            if removed.0 == 0 {
                break;
            }
            (number, bytes) = (
                number.saturating_sub(removed.0),
                bytes.saturating_sub(removed.1),
            );
        }
        let removed = remove_before(&transaction, self.limits.age_max)?;
        (number, bytes) = (
            number.saturating_sub(removed.0),
            bytes.saturating_sub(removed.1),
        );
        transaction.commit()?;
        (self.number, self.bytes) = (number, bytes);
        Ok(())
    }
}

/// How many were removed, and their bytes.
fn remove_oldest(connection: &Connection, number: u64) -> rusqlite::Result<(u64, u64)> {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(
        "DELETE FROM receipts WHERE id IN (SELECT id FROM receipts ORDER BY id LIMIT ?1) RETURNING bytes",
    )?;
    sum(&mut statement, params![number])
}

/// As [`remove_oldest`], by age. The oldest is looked at first: most times it is young enough.
fn remove_before(connection: &Connection, age_max: Duration) -> rusqlite::Result<(u64, u64)> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let before_ms = i64::try_from(now.saturating_sub(age_max).as_millis()).unwrap_or(0);
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT received_ms FROM receipts ORDER BY id LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    if oldest.is_none_or(|oldest| before_ms <= oldest) {
        return Ok((0, 0));
    }
    let mut statement =
        connection.prepare_cached("DELETE FROM receipts WHERE received_ms < ?1 RETURNING bytes")?;
    sum(&mut statement, params![before_ms])
}

fn sum(
    statement: &mut rusqlite::CachedStatement<'_>,
    values: &[&dyn rusqlite::ToSql],
) -> rusqlite::Result<(u64, u64)> {
    let mut removed = (0, 0);
    let mut rows = statement.query(values)?;
    while let Some(row) = rows.next()? {
        removed = (
            removed.0 + 1,
            removed.1 + u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
        );
    }
    Ok(removed)
}

/// Which receipts' logs are wanted.
#[derive(Debug, Clone)]
pub(crate) struct LogQuery {
    pub(crate) function: SmallName,
    /// Of this invocation alone.
    pub(crate) invocation: Option<InvocationId>,
    /// Of at most so many invocations, the newest that logged anything.
    pub(crate) invocations_max: u32,
}

impl Store {
    /// The history for its writer, on a connection of its own: losing the last receipts with the machine's power is no
    /// harm, and each would cost a wait for the disk.
    pub(crate) fn history(&self, limits: ReceiptLimits) -> Result<History, StateError> {
        History::load(connect(&self.path, "NORMAL")?, limits)
    }

    /// One receipt's JSON.
    pub(crate) fn receipt(&self, id: InvocationId) -> Result<Option<String>, StateError> {
        let sql = "SELECT receipt FROM receipts WHERE id = ?1";
        let found = self
            .connection()
            .query_row(sql, params![id.to_string()], |row| row.get(0))
            .optional();
        found.map_err(query("read a receipt"))
    }

    /// The receipts whose logs are wanted, oldest first.
    pub(crate) fn logged(&self, wanted: &LogQuery) -> Result<Vec<Receipt>, StateError> {
        let sql = "SELECT receipt FROM receipts
            WHERE function = ?1 AND (?2 IS NULL OR id = ?2) AND 0 < lines ORDER BY id DESC LIMIT ?3";
        let connection = self.connection();
        let invocation = wanted.invocation.map(|id| id.to_string());
        let values = params![wanted.function.as_str(), invocation, wanted.invocations_max];
        let mut statement = connection
            .prepare_cached(sql)
            .map_err(query("read the logs"))?;
        let mut rows = statement.query(values).map_err(query("read the logs"))?;
        let (mut receipts, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.next().map_err(query("read the logs"))? {
            let json: String = row.get(0).map_err(query("read the logs"))?;
            bytes += json.len();
            if LOGGED_BYTES_MAX < bytes && !receipts.is_empty() {
                break;
            }
            receipts.push(
                serde_json::from_str(&json)
                    .map_err(|_bad| StateError::Corrupt { what: "receipt" })?,
            );
        }
        receipts.reverse();
        Ok(receipts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipts::tests::receipt;

    const ROOMY: ReceiptLimits = ReceiptLimits {
        number_max: 1000,
        bytes_max: 1 << 30,
        age_max: Duration::from_secs(3600),
    };

    fn write(store: &Store, limits: ReceiptLimits, receipts: &[Receipt]) {
        let mut history = store.history(limits).unwrap();
        for few in receipts.chunks(5) {
            let batch: Vec<_> = few.iter().cloned().map(Arc::new).collect();
            history.write_batch(&batch).unwrap();
        }
    }

    #[test]
    fn a_receipt_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let written = receipt("a", Some("hello"));
        write(&store, ROOMY, std::slice::from_ref(&written));
        let json = store.receipt(written.invocation).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Receipt>(&json).unwrap(), written);
        assert_eq!(store.receipt(InvocationId::new()).unwrap(), None);
    }

    #[test]
    fn the_history_keeps_the_newest_within_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let written: Vec<Receipt> = (0..50).map(|_| receipt("a", None)).collect();
        write(
            &store,
            ReceiptLimits {
                number_max: 10,
                ..ROOMY
            },
            &written,
        );
        let kept = written
            .iter()
            .filter(|receipt| store.receipt(receipt.invocation).unwrap().is_some())
            .count();
        assert!((1..=10).contains(&kept), "{kept}");
    }

    #[test]
    fn the_history_keeps_within_its_bytes_also_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let one = receipt("a", Some("x"));
        let size = serde_json::to_string(&one).unwrap().len() as u64;
        let limits = ReceiptLimits {
            bytes_max: size * 3,
            ..ROOMY
        };
        for _ in 0..10 {
            write(&store, limits, &[receipt("a", Some("x"))]);
        }
        let wanted = LogQuery {
            function: SmallName::new("a").unwrap(),
            invocation: None,
            invocations_max: 100,
        };
        let kept = store.logged(&wanted).unwrap().len();
        assert!((1..=3).contains(&kept), "{kept}");
    }

    #[test]
    fn a_receipt_beyond_the_age_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let old = Receipt {
            received_ms: 1,
            ..receipt("a", None)
        };
        let new = receipt("a", None);
        write(&store, ROOMY, &[old.clone(), new.clone()]);
        assert!(store.receipt(old.invocation).unwrap().is_none());
        assert!(store.receipt(new.invocation).unwrap().is_some());
    }

    #[test]
    fn logs_are_of_one_function_or_one_invocation_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let written = [
            receipt("a", Some("1")),
            receipt("b", Some("2")),
            receipt("a", None),
            receipt("a", Some("3")),
        ];
        write(&store, ROOMY, &written);
        let wanted = LogQuery {
            function: SmallName::new("a").unwrap(),
            invocation: None,
            invocations_max: 100,
        };
        let texts = |query: &LogQuery| -> Vec<String> {
            store
                .logged(query)
                .unwrap()
                .iter()
                .map(|receipt| receipt.log[0].text.clone())
                .collect()
        };
        assert_eq!(texts(&wanted), ["1", "3"]);
        assert_eq!(
            texts(&LogQuery {
                invocations_max: 1,
                ..wanted.clone()
            }),
            ["3"]
        );
        assert_eq!(
            texts(&LogQuery {
                invocation: Some(written[0].invocation),
                ..wanted
            }),
            ["1"]
        );
    }
}
