// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The survey of this host. An executable of its own: the survey forks, and a fork holds every lock of its process for a
//! moment, which tests beside it would notice.

use hearth_jail::host::{Level, Verdict, check, survey};

#[test]
fn whatever_is_not_as_it_should_be_comes_with_a_remedy() {
    for finding in survey().findings {
        assert_eq!(
            finding.fix.is_none(),
            finding.verdict == Verdict::Given,
            "{finding:?}"
        );
        assert!(!finding.found.is_empty(), "{finding:?}");
    }
}

#[test]
fn a_host_that_lacks_anything_needed_is_refused_with_all_of_it() {
    let survey = survey();
    let missing = survey.missing().count();
    assert_eq!(survey.level == Level::Refused, 0 < missing, "{survey:?}");
    let refused = check(Level::Rootless)
        .map_err(|refusal| refusal.missing.len())
        .err();
    assert_eq!(refused, (0 < missing).then_some(missing));
}
