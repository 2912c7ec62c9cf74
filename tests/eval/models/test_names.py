from hypothesis import given
from hypothesis import strategies as st

from eval.models.names import short_names

PATHS = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), max_size=8)


def _names(*urls):
    return list(short_names(urls).values())


def test_names_are_as_short_as_tells_them_apart():
    assert _names("/runs/vitb", "/runs/vits") == ["vitb", "vits"]
    assert _names("/jan/vitb", "/feb/vitb", "/feb/vits/") == ["jan/vitb", "feb/vitb", "vits"]
    assert _names("/jan/a/vitb", "/feb/a/vitb", "/feb/b/vitb") == ["jan/a/vitb", "feb/a/vitb", "b/vitb"]
    assert _names("s3://bucket/a/run", "s3://bucket/b/run") == ["a/run", "b/run"]
    assert _names("s3://one/run", "gs://two/run") == ["one/run", "two/run"]
    assert _names("s3://one/run", "gs://one/run", "/one/run") == ["s3://one/run", "gs://one/run", "/one/run"]
    assert _names("vitb", "jan/vitb", "../jan/vitb") == ["vitb", "jan/vitb", "../jan/vitb"]
    assert _names("/", ".") == ["/", "."]
    assert _names("/jan/vitb", "/jan/vitb") == ["vitb"], "one place"
    assert _names() == []


@given(PATHS)
def test_names_are_ends_of_paths_that_no_other_path_has(urls):
    names = short_names(urls)
    assert set(names) == set(urls)
    assert len(set(names.values())) == len(names)
    for url, name in names.items():
        assert f"/{url}".endswith(f"/{name}")
        shorter = name.partition("/")[2]
        others = [other for other in names if other != url]
        assert not any(f"/{other}".endswith(f"/{name}") for other in others) or name == url
        assert not shorter or any(f"/{other}".endswith(f"/{shorter}") for other in others)
