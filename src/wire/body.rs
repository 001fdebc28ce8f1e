//! Fields of a JSON body for the table's `body.NAME` filters (SPEC 5.1): top level only, no allocation.

/// The value of the top-level member `name` of a JSON object, decoded into `out` (cleared first; keeps its capacity).
///
/// Escapes in keys and values are decoded, the last duplicate wins, strings lose their quotes, numbers and literals are
/// given as written, objects and arrays as their raw text. `None`: no such member, or no JSON object.
pub fn json_member<'o>(_body: &[u8], _name: &str, _out: &'o mut Vec<u8>) -> Option<&'o [u8]> {
    todo!()
}
