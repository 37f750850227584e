# SPDX-License-Identifier: Apache-2.0
"""What each epoch trains on, and the state of a run."""
