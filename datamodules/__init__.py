"""The DataModule, its sources, frame samplers and frame sizes.

Each name is also a class path of the command line, such as `datamodules.Rooms`. A module is imported when one of its
names is first used.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "augmentations": ["Augmentation", "RandomCameraErrors", "RandomFocalLength"],
        "interventions": [
            *("Intervention", "MovedPanel", "OtherWalls", "OtherWorlds", "ScaledLengths", "ScaledTranslations"),
            *("TurnedCameras", "TurnedEmptyViews", "TurnedPanelView"),
        ],
        "perturbations": [
            *("CameraErrors", "DriftingCameras", "FramesAtOtherCenters", "FramesOnOtherCameras", "LongerFocalLength"),
            *("MissingCameras", "NoisyCameras", "OtherCameras", "OtherGeometry", "Perturbation", "ReversedFrames"),
            *("ScaledCameras", "ShuffledFrameNumbers", "ShuffledFrames", "WrongFocalLength", "ZeroGeometry"),
        ],
        "samplers": [
            *("Consecutive", "DatasetDepth", "Duplicate", "FramePairing", "FrameRateSampler", "FrameSampler"),
            *("JitteredSampler", "Neighbor", "OffsetNeighbor", "PointSource", "PoseFarthestSampler"),
            *("PosePlaneSampler", "PredictedPoints", "RandomSampler", "RandomSteps", "SceneView", "SelectedFrames"),
            *("SpaceAwareSampler", "UniformSampler"),
        ],
        "sources": [
            *("Conversations", "Mixture", "PanelAnywhere", "PanelDirection", "PanelDistance", "PanelDwelling"),
            *(
                "PanelFreeTurn",
                "PanelGlimpse",
                "PanelIntrinsics",
                "PanelKnownSize",
                "PanelMotion",
                "PanelOrder",
                "PanelPairs",
            ),
            *("PanelParallax", "PanelRooms", "PanelRotation", "PanelTask", "PanelTranslation", "PanelTurn"),
            "PanelTwoViews",
            *("PosedScenes", "ReVSI", "RealRooms", "Rooms", "SQA3D", "ScanQA", "SceneFolder", "SceneSource"),
            *("SingleVideo", "VSIBench", "VSTIBench"),
        ],
        "resize": ["FixedWidthStills", "OriginalStills", "PixelBounds", "StillResize", "WholeStills"],
        "datamodule": ["VideoQADataModule"],
        "frame_cache": ["FrameCache"],
    },
)
