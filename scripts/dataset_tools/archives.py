"""The archives of the datasets that can be downloaded, as their publishers offer them.

The MD5 checksums of VOC are those that torchvision verifies. COCO's publishers give none; those
here are of the files as offered since 2017, and agree with those in other projects.
"""

from __future__ import annotations

from dataclasses import dataclass

_VOC_HOST = "http://host.robots.ox.ac.uk/pascal/VOC"
_COCO_HOST = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """One file to fetch and unpack.

    Attributes:
        url: the publisher's URL; the last part is the file name.
        bytes: its size.
        md5: its checksum in hexadecimal digits.
        folder: where it is unpacked, relative to the folder of all datasets.
    """

    url: str
    bytes: int
    md5: str
    folder: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def url_at(self, base: str | None) -> str:
        """Return its URL below ``base``, which serves all archives; None: the publisher's."""
        return self.url if base is None else f"{base.rstrip('/')}/{self.name}"


DATASETS: dict[str, tuple[Archive, ...]] = {
    "voc2007": (
        Archive(
            f"{_VOC_HOST}/voc2007/VOCtrainval_06-Nov-2007.tar",
            460_032_000,
            "c52e279531787c972589f7e41ab4ae64",
            ".",
        ),
        Archive(
            f"{_VOC_HOST}/voc2007/VOCtest_06-Nov-2007.tar",
            451_020_800,
            "b6e924de25625d8de591ea690078ad9f",
            ".",
        ),
    ),
    "voc2012": (
        Archive(
            f"{_VOC_HOST}/voc2012/VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            "6cd6e144f989b92b3379bac3b3de84fd",
            ".",
        ),
    ),
    "coco2017": (
        Archive(
            f"{_COCO_HOST}/annotations/annotations_trainval2017.zip",
            252_907_541,
            "f4bbac642086de4f52a3fdda2de5fa2c",
            "coco",
        ),
        Archive(
            f"{_COCO_HOST}/zips/val2017.zip",
            815_585_330,
            "442b8da7639aecaf257c1dceb8ba8c80",
            "coco",
        ),
        Archive(
            f"{_COCO_HOST}/zips/train2017.zip",
            19_336_861_798,
            "cced6f7f71b7629ddf16f17bbcfab6b2",
            "coco",
        ),
    ),
}
