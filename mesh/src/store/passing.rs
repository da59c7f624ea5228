//! Errors of a database that are no fault of what was asked of it.

use sea_orm::{DbErr, RuntimeErr, sqlx};

/// SQLite's primary result codes: busy, locked, out of memory, read-only,
/// interrupted, I/O error, full, can't be opened.
///
/// Source: <https://sqlite.org/rescode.html>.
const SQLITE: [u32; 8] = [5, 6, 7, 8, 9, 10, 13, 14];
/// PostgreSQL's classes of codes: connection lost, transaction state or rollback,
/// out of resources, stopped by an operator, system error.
///
/// Source: PostgreSQL's documentation, appendix A.
const POSTGRES: [&str; 6] = ["08", "25", "40", "53", "57", "58"];
/// Codes of these classes that the work itself brings about, each time: a
/// statement after one that failed, a constraint checked at the end, a statement
/// that takes too long.
const NOT_PASSING: [&str; 3] = ["25P02", "40002", "57014"];

/// Whether the same may work later.
pub(crate) fn is_passing(why: &DbErr) -> bool {
    match why {
        DbErr::Conn(why) | DbErr::Exec(why) | DbErr::Query(why) => match why {
            RuntimeErr::SqlxError(why) => is_passing_in_sqlx(why),
            RuntimeErr::Internal(_) => false,
        },
        DbErr::ConnectionAcquire(_) => true,
        _ => false,
    }
}

fn is_passing_in_sqlx(why: &sqlx::Error) -> bool {
    match why {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(why) => why.code().is_some_and(|code| is_passing_code(&code)),
        _ => false,
    }
}

/// PostgreSQL's codes have five characters; SQLite's extended ones are numbers
/// of up to four digits, whose lowest byte is the primary one.
fn is_passing_code(code: &str) -> bool {
    match code.parse::<u32>() {
        Ok(number) if code.len() < 5 => SQLITE.contains(&(number & 0xff)),
        _ => {
            !NOT_PASSING.contains(&code)
                && code.get(..2).is_some_and(|class| POSTGRES.contains(&class))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_data_stays_wrong() {
        // Full, busy (in a snapshot), I/O error at a write; disk full, deadlock.
        for code in ["13", "517", "778", "53100", "40P01"] {
            assert!(is_passing_code(code), "{code}");
        }
        // A broken unique key, a type that doesn't fit; a NUL in a text, a broken key.
        for code in ["2067", "20", "22021", "23505", "25P02", "57014", ""] {
            assert!(!is_passing_code(code), "{code}");
        }
    }

    #[test]
    fn a_lost_connection_passes_and_a_missing_row_does_not() {
        let lost = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let lost = RuntimeErr::SqlxError(sqlx::Error::Io(lost).into());
        assert!(is_passing(&DbErr::Exec(lost)));
        assert!(!is_passing(&DbErr::RecordNotFound(String::new())));
        let missing = RuntimeErr::SqlxError(sqlx::Error::RowNotFound.into());
        assert!(!is_passing(&DbErr::Query(missing)));
    }
}
