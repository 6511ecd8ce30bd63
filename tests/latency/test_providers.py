import pytest

from latency.device import DeviceSettings
from latency.errors import InputError, ProviderUnavailableError
from latency.providers import PRECISIONS, PROVIDERS, provider_named


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.short)
def test_every_provider_is_found_by_its_short_and_its_full_name(provider):
    assert provider_named(provider.short.upper()) is provider
    assert provider_named(provider.name) is provider


def test_an_unknown_provider_is_refused_with_the_known_ones():
    with pytest.raises(ProviderUnavailableError, match=r"'abacus'; known are: cpu, openvino"):
        DeviceSettings.parse("abacus")


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.short)
def test_every_provider_runs_fp32_and_only_known_formats(provider):
    assert provider.precisions[0] == "fp32"
    assert set(provider.precisions) <= set(PRECISIONS)


def test_fp16_on_the_cpu_is_refused_with_what_runs_it():
    with pytest.raises(
        InputError, match=r"cpu cannot run fp16: .* runs fp32, int8\. Providers for fp16: cuda, tensorrt"
    ):
        DeviceSettings.parse("cpu", precision="fp16")
