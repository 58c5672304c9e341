"""A short campaign; `make campaign` runs it for as long as wanted."""

from __future__ import annotations

import pytest

from nfs.campaign.run import Campaign, document
from nfs.lab import Lab
from nfs.scene import Scene

pytestmark = pytest.mark.nfs

SECONDS = 25.0


@pytest.mark.timeout(240)
def test_random_faults_let_nobody_in_who_must_wait(lab: Lab, scene: Scene) -> None:
    """`scene` undoes what a campaign that failed has left."""
    campaign = Campaign(lab, "campaign", seed=1, processes=4, locks=4, lease_s=4.0)
    verdict = campaign.run(SECONDS)
    campaign.write_lock_anew()
    figures = document(campaign, verdict, SECONDS)
    print(figures)
    assert not verdict.violations
    assert not campaign.errors
    assert not campaign.leftovers()
    # Otherwise nothing was put to the test.
    assert verdict.count("read") > 10
    assert verdict.count("write") > 3
    assert campaign.faults
