//! A part of a Markdown file that a program writes, between two comments that
//! name it, in a file that people write.

/// `text` with what stands between `<!-- NAME: begin -->` and
/// `<!-- NAME: end -->` replaced by `part`; `None` where the comments are missing
/// or in the wrong order.
pub fn replace(text: &str, name: &str, part: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->"), format!("<!-- {name}: end -->"));
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n\n{}\n\n{end}{after}", part.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_comments_is_replaced() {
        let text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n";
        let expected = "a\n<!-- x: begin -->\n\nnew\n\n<!-- x: end -->\nb\n";
        assert_eq!(replace(text, "x", "new\n").as_deref(), Some(expected));
        assert_eq!(replace(expected, "x", "new").as_deref(), Some(expected), "again");
    }

    #[test]
    fn a_file_without_the_comments_is_left_alone() {
        assert_eq!(replace("a", "x", "new"), None);
        assert_eq!(replace("<!-- x: end --><!-- x: begin -->", "x", "new"), None);
    }
}
