"""Geometry encoders (3D tokens, cameras, depth, points), their cache, and unprojection.

Each is imported when it is first used: a model has one of them, or the dataset's cameras.
"""

from zoo.lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        ".cameras.rays": ["unproject_depth"],
        "base": ["DatasetPoses", "GeometryEncoder", "ScaleSource", "SceneGeometry"],
        "cache": ["CachedGeometry", "GeometryCache"],
        "da3_encoder": ["DA3Encoder", "PosedDA3", "PretrainedDA3", "TinyDA3"],
        "dataset_geometry": ["DatasetGeometry"],
        "metric_model": ["FittedMetricModel", "MetricModel"],
        "pi3x": ["Pi3X", "Pi3XOutput"],
        "pi3x_encoder": ["Pi3XEncoder", "PretrainedPi3X", "TinyPi3X"],
        "vggt": ["VGGT", "VGGTOutput", "cameras_to_pose_encoding", "pose_encoding_to_cameras"],
        "vggt_encoder": ["PretrainedVGGT", "TinyVGGT", "VGGTEncoder"],
    },
)
